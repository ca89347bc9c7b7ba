"""One exchange in one process: it reads what it sends, writes what it receives, and averages what it collects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skerry.exchange.moves import Move
from skerry.exchange.routes import Stages, Transfer, transfers
from skerry.merge.aggregate import is_exact
from skerry.model.device import wide
from skerry.runtimes.distributed.storage import InSubnet, Owned, Storage, read, write_
from skerry.runtimes.distributed.wire import (
    IN_CACHE,
    Part,
    Wire,
    WireFormat,
    messages,
    num_bytes,
    parts,
    split,
    wire_dtype,
)
from skerry.subnet.index import Cut

Key = tuple[int, tuple[int, ...]]
Messages = Mapping[int, Sequence[Sequence[Part]]]


@dataclass(eq=False)
class LocalExchange:
    """What the process of one worker does in an exchange.

    Attributes:
        worker: the worker of this process.
        moves: all moves that concern it.
        before: its subnet in the round that ends.
        after: its subnet in the next round, to be written; a tensor may be the same as in ``before``.
        owned: what it stores as an owner.
        sizes: full-size tensors on the meta device, by name.
        good: for each worker whether its values count.
        average: whether to average over several holders; False where their values are equal.
        wire: how floats are sent.
        rng: random generator of stochastic rounding.
        device: where the subnet is.
    """

    worker: int
    moves: Sequence[Move]
    before: InSubnet
    after: InSubnet
    owned: Owned
    sizes: Mapping[str, Tensor]
    good: Sequence[bool]
    average: bool
    wire: WireFormat
    rng: torch.Generator
    device: torch.device
    _stages: Stages = field(init=False)
    _sums: dict[Key, tuple[Tensor, int, int]] = field(default_factory=dict)
    _means: dict[Key, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stages = transfers(self.moves, self.sizes, average=self.average)

    @property
    def bytes_due(self) -> int:
        """Bytes of the elements that this process has to send, without padding."""
        return self._stages.bytes_from(self.worker, self.sizes)

    def bytes_to_send(self, chunk: int) -> int:
        """Bytes of the messages that this process sends."""
        sends = [self.messages(stage, chunk)[0] for stage in (self._stages.first, self._stages.second)]
        return sum(num_bytes(message) for by_peer in sends for stream in by_peer.values() for message in stream)

    def run(self, wire: Wire) -> None:
        """Run the exchange, together with all other processes."""
        for move in self.moves:
            if self._source(move) == self.worker and len(move.next_holders) > 1 and not self._is_collected(move):
                self._round_(move)  # all holders then have the same bits
        # What stays is copied while the first messages are on their way.
        first, second = (self.messages(stage, wire.chunk) for stage in (self._stages.first, self._stages.second))
        wire.run(*first, self.read_first, self.write_first, self.keep_own, device=self.device)
        wire.run(*second, self.read_second, self.write_second, device=self.device)

    def keep_own(self) -> None:
        """Copy what stays in this process, between the two subnets and the owned parts."""
        for move in self.moves:
            if self._is_collected(move) or (self._source(move) != self.worker and self.worker not in move.holders):
                continue
            if self.worker not in (move.next_holders or (move.owner,)):
                continue
            if move.holders and move.next_holders and self.before.tensors[move.name] is self.after.tensors[move.name]:
                continue
            for cut in self._split(move):
                self._write_new(move, cut, self._read_old(move, cut))

    def messages(self, some: Iterable[Transfer], chunk: int) -> tuple[Messages, Messages]:
        """Return the messages that this process sends to and receives from each other process."""
        out: dict[int, list[Part]] = {}
        into: dict[int, list[Part]] = {}
        for transfer in some:
            if self.worker in (transfer.source, transfer.target):
                found = parts(transfer, self.sizes[transfer.move.name], self.wire, chunk)
                ours = transfer.source == self.worker
                (out if ours else into).setdefault(transfer.target if ours else transfer.source, []).extend(found)
        sends, receives = ({p: messages(stream, chunk) for p, stream in sorted(way.items())} for way in (out, into))
        return sends, receives

    def read_first(self, part: Part) -> Tensor:
        """Return what this process sends in the first stage."""
        return self._for_wire(self._read_old(part.move, part.cut))

    def write_first(self, peer: int, part: Part, tensor: Tensor) -> None:
        """Take what ``peer`` sends in the first stage."""
        tensor = tensor.to(self.sizes[part.move.name].dtype)
        if self._is_collected(part.move):
            self._collect(peer, part, tensor)
        else:
            self._write_new(part.move, part.cut, tensor)

    def read_second(self, part: Part) -> Tensor:
        """Return a mean that this process has collected."""
        if self.worker in part.move.next_holders:
            return read(self.after, part.move.name, self.sizes[part.move.name].shape, part.cut)
        return self._means[_key(part)]

    def write_second(self, peer: int, part: Part, tensor: Tensor) -> None:
        """Take a mean that ``peer`` has collected."""
        self._write_new(part.move, part.cut, tensor.to(self.sizes[part.move.name].dtype))

    def _is_collected(self, move: Move) -> bool:
        return self.average and len(move.holders) > 1

    def _source(self, move: Move) -> int | None:
        return move.holders[0] if move.holders else move.owner

    def _collect(self, peer: int, part: Part, tensor: Tensor) -> None:
        """Add what a holder sends; write the mean when all holders have sent."""
        key, exact = _key(part), is_exact(tensor)
        if key not in self._sums:
            own = self._read_old(part.move, part.cut)
            self._sums[key] = _start(own, self.good[self.worker], self.worker, exact)
        total, first, arrived = self._sums[key]
        if self.good[peer]:
            if not exact:
                total += tensor.to(total.dtype)
            elif first < 0 or peer < first:  # integers are those of the first worker
                total, first = tensor.clone(), peer
        self._sums[key] = (total, first, arrived + 1)
        if arrived + 1 == len(part.move.holders) - 1:
            del self._sums[key]
            self._finish(part, total, tensor.dtype)

    def _finish(self, part: Part, total: Tensor, dtype: torch.dtype) -> None:
        """Write the mean of a part whose holders have all sent, or keep it for the second stage."""
        move = part.move
        count = sum(self.good[w] for w in move.holders)
        if count == 0:  # all are refused
            total = self._read_old(move, part.cut)
        elif not is_exact(total):
            total = (total / count).to(dtype)
        mean = self._for_wire(total).to(total.dtype)
        if self.worker in (move.next_holders or (move.owner,)):
            self._write_new(move, part.cut, mean)
        else:
            self._means[_key(part)] = mean

    def _read_old(self, move: Move, cut: Cut) -> Tensor:
        return read(self._old(move), move.name, self.sizes[move.name].shape, cut)

    def _write_new(self, move: Move, cut: Cut, values: Tensor) -> None:
        new: Storage = self.after if move.next_holders else self.owned
        write_(new, move.name, self.sizes[move.name].shape, cut, values)

    def _old(self, move: Move) -> Storage:
        return self.before if move.holders else self.owned

    def _split(self, move: Move) -> Iterable[Cut]:
        size = self.sizes[move.name]
        return split(move.cut, size.shape, IN_CACHE // size.element_size())

    def _round_(self, move: Move) -> None:
        size = self.sizes[move.name]
        if wire_dtype(size.dtype, self.wire) == size.dtype:
            return
        for cut in self._split(move):
            rounded = self._for_wire(self._read_old(move, cut)).to(size.dtype)
            write_(self._old(move), move.name, size.shape, cut, rounded)

    def _for_wire(self, tensor: Tensor) -> Tensor:
        dtype = wire_dtype(tensor.dtype, self.wire)
        return tensor if dtype == tensor.dtype else round_at_random(tensor, self.rng)


def round_at_random(tensor: Tensor, rng: torch.Generator) -> Tensor:
    """Round float32 to bfloat16, up or down at random without bias: E[round(x)] = x.

    A value without a finite neighbour away from zero is rounded towards zero. Infinities and NaN stay.

    Args:
        tensor: float32, of any shape.
        rng: random generator.

    Returns:
        bfloat16, of the same shape.

    References:
        Stochastic rounding as in Gupta, Agrawal, Gopalakrishnan, Narayanan: Deep Learning with Limited Numerical
        Precision, ICML 2015, arXiv 1502.02551, section 3.
    """
    noise = torch.randint(0, 2**16, tensor.shape, generator=rng, dtype=torch.int32).to(tensor.device)
    bits = tensor.contiguous().view(torch.int32)  # bfloat16 is the upper half of float32
    up, down = ((b & -(2**16)).view(torch.float32) for b in (bits + noise, bits))
    finite = torch.where(up.isfinite(), up, down)  # the largest values are not rounded to infinity
    return torch.where(tensor.isfinite(), finite, tensor).to(torch.bfloat16)


def _start(own: Tensor, good: bool, rank: int, exact: bool) -> tuple[Tensor, int, int]:
    if exact:
        return own, rank if good else -1, 0
    # In float64 the mean of equal float32 values is that value.
    total = own.to(wide(own))
    return total if good else torch.full_like(total, -0.0), -1, 0


def _key(part: Part) -> Key:
    """Return a key for a part of a move; different parts begin with different indices."""
    return id(part.move), tuple(-1 if index is None else index.first for index in part.cut)
