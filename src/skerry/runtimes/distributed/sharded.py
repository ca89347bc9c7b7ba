"""The store of a process that never holds the full model: its worker's subnet, and the elements that it owns.

While its worker trains, the process also has a copy of the narrow tensors, so that a refused piece keeps its old
values. With ``overlap`` it has two copies of what is averaged meanwhile: the values that the worker began with, and the
mean that arrives late.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from skerry.exchange.gathering import gathering
from skerry.exchange.moves import Move, moves
from skerry.exchange.owners import owned_cut
from skerry.merge.aggregate import is_exact
from skerry.model import optimizer_state
from skerry.model.device import wide
from skerry.model.optimizer_state import place_of
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.partitions.share import Share
from skerry.plan.table import trained_in_blocks
from skerry.randomness import generator, seed_of
from skerry.runtimes.distributed.local_exchange import LocalExchange
from skerry.runtimes.distributed.reuse import reusable, room
from skerry.runtimes.distributed.shard import CPU, first_shard
from skerry.runtimes.distributed.storage import InSubnet, Owned
from skerry.runtimes.distributed.tensor_groups import grouped_moves
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.overlap import correction, late_names
from skerry.runtimes.runtime import Beginning, FullModel, Handover, Report
from skerry.runtimes.streamed import Streamed
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract
from skerry.subnet.index import cut_shape, same_cut

Tensors = Mapping[str, Tensor]

_SLAB = 2**22
"""Elements that are summed at a time."""


class Group(Protocol):
    """What the store needs of the process group: ``Processes``, or threads in tests."""

    rank: int
    num_processes: int
    round: int

    def reports(self, mine: Report, agreement: Mapping[str, str]) -> list[Report]:
        """Return the reports of all, in order; raise ValueError where the agreement differs."""
        ...

    def agree(self, values: Mapping[str, str]) -> None:
        """Raise ValueError unless the values are the same in all processes."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        ...

    def sum_in_place(self) -> Callable[[Tensor], None] | None:
        """Return a function that sums a tensor over all processes, on its device; None without a fast way to do so."""
        ...

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        """Start ``call``, with a wire of its own; return a function that waits for it."""
        ...


class Sharded:
    """One process's part of the store.

    Args:
        group: the process group.
        wire: sends and receives.
        beginning: the model, and where its values come from.
        wire_format: how floats are sent.
    """

    def __init__(self, group: Group, wire: Wire, beginning: Beginning, *, wire_format: WireFormat = "exact") -> None:
        self.plan, self.assignment = beginning.plan, beginning.assignment
        self.model = skeleton(beginning.model)
        self.sizes = {n: torch.empty_like(t, device="meta") for n, t in named_tensors(self.model).items()}
        self.sizes |= beginning.state
        self._group, self._wire, self._wire_format = group, wire, wire_format
        self._digest, self._start = self.plan.digest(), beginning.start
        self._device = beginning.device
        self._shard = first_shard(beginning, self.sizes, group.rank)
        self._before: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}
        self._arrived: Callable[[], None] | None = None
        self._bytes_late, self._bytes_summed = 0, 0.0
        self._sum = group.sum_in_place()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The narrow tensors of the subnet, with optimizer state that travels."""
        return self._shard.tensors

    @property
    def kept(self) -> dict[int, dict[str, Tensor]]:
        """What the worker here keeps for itself."""
        return self._shard.kept

    @property
    def layout(self) -> Assignment:
        """Who holds what of ``shards``."""
        return self.assignment

    @property
    def bytes_sent(self) -> float:
        """Bytes this process has sent for exchanges."""
        return float(self._wire.bytes_sent + self._bytes_late + self._bytes_summed)

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Return the subnet that is here."""
        subnet = extract(self.model, self.plan, self.assignment.units(worker))
        began = self._shard.began
        now = {name: tensor for name, tensor in self.tensors.items() if name not in began}
        self._before = {n: room(self._spare.get(n), t.shape, t.dtype, t.device).copy_(t) for n, t in now.items()}
        self._spare = {}
        now |= {name: tensor.clone() for name, tensor in began.items()}
        fill_(subnet, now)
        return subnet, {n: t for n, t in now.items() if optimizer_state.SEPARATOR in n}

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Wait for the means; return the differences from what the worker began with."""
        self._wait_for_late()
        for name, tensor in self._shard.began.items():
            yield name, correction(self.tensors[name], tensor)

    @torch.no_grad()
    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Send what others will hold, receive what the worker here will hold."""
        self._wait_for_late()
        (own,) = mine
        self._add_new_state(own.tensors)
        self._check(own.tensors)
        reports = self._group.reports(own.report, self._agreement(then, overlap))
        good = [report.good for report in reports]
        late = late_names(self.model, self.plan, self.assignment, then) if overlap else []
        due = torch.zeros(len(reports), dtype=torch.float64)
        due[self._group.rank] = self._exchange(own, then, good, late)
        self.assignment = then
        return [replace(r, bytes_due=d) for r, d in zip(reports, self._group.total(due).tolist(), strict=True)]

    def full(self, share: Share) -> FullModel:
        """Return the full model; its tensors arrive when they are used."""
        self._wait_for_late()
        self._spare = {}  # evaluation needs memory
        return Streamed(
            self.model, self.plan, share, self._gather, self._device, held=self.tensors, total=self._group.total
        )

    def shards(self) -> dict[str, Tensor]:
        """Return what this process stores, by the names of a checkpoint."""
        self._wait_for_late()
        return self._shard.named(self._group.rank)

    def _exchange(self, own: Handover, then: Assignment, good: Sequence[bool], late: Sequence[str]) -> float:
        """Replace what this process stores by that of the next round; return the bytes due.

        Args:
            own: what the worker here hands over.
            then: who holds what in the next round.
            good: for each worker whether its values count.
            late: the parameters whose mean may arrive late.
        """
        early = {name: size for name, size in self.sizes.items() if name not in late}
        fits = self._cuts(then).shapes(early)
        values, free = self._end_round(own)
        old = self.tensors if own.report.good else values
        begin = values if own.report.good else values | self._shard.began
        free = reusable(free.items(), fits)  # the others are freed now
        after, due = self._exchange_now(early, values, then, good, free)
        if late:
            means, due_late = self._start_late({name: self.sizes[name] for name in late}, values, then, good)
            after, due = after | means, due + due_late
        self._spare = reusable([*old.items(), *free.items()], fits, after.values())
        self._shard.tensors, self._shard.began = after, {name: begin[name] for name in late}
        return due

    def _end_round(self, own: Handover) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the worker's narrow tensors that count, and tensors that may be written over."""
        before, self._before = self._before, {}
        if own.report.good:
            return {name: tensor.detach() for name, tensor in own.tensors.items()}, before
        # Nothing of a refused piece counts. If all are refused, everything stays as it was.
        means = {name: self.tensors[name] for name in self._shard.began}
        return before | means, {n: t for n, t in self.tensors.items() if n not in means}

    def _exchange_now(
        self, sizes: Tensors, values: Tensors, then: Assignment, good: Sequence[bool], free: Tensors
    ) -> tuple[dict[str, Tensor], float]:
        """Exchange all that has ``sizes``, a group at a time; return the new narrow tensors and the bytes due."""
        after: dict[str, Tensor] = {}
        due = 0.0
        for group, found in grouped_moves(self.plan, sizes, self.assignment, then, self._group.rank):
            new = self._new_tensors(group, then, values, free)
            step = self._step(group, found, values, new, then, good)
            due += step.bytes_due
            summed = self._summed(group, found, new)
            if summed:
                step = replace(step, moves=[move for move in found if move.name not in summed])
            step.run(self._wire)
            for name in sorted(summed):
                self._average_(new[name], good)
            after |= new
        return after, due

    def _summed(self, sizes: Tensors, found: Sequence[Move], new: Tensors) -> set[str]:
        """Return the names of floats that all workers hold whole, now and next, if the group can sum them."""
        if self._sum is None or self._wire_format != "exact":
            return set()
        everyone = tuple(range(self._group.num_processes))
        others = {m.name for m in found if not m.holders == m.next_holders == everyone}
        # Who has a tensor whole sees all its moves, so all processes find the same names.
        whole = {name for name, tensor in new.items() if tensor.shape == sizes[name].shape}
        return {move.name for move in found if not is_exact(sizes[move.name])} & whole - others

    def _average_(self, tensor: Tensor, good: Sequence[bool]) -> None:
        """Average over the workers that count, as ``aggregate_`` does: in float64, so that equal values stay equal."""
        if self._sum is None or not any(good):
            return
        flat, num = tensor.contiguous().view(-1), self._group.num_processes
        for slab in torch.split(flat, _SLAB):
            total = slab.to(wide(tensor))
            if not good[self._group.rank]:
                total = torch.full_like(total, -0.0)  # -0.0 + x == x to the bit
            self._sum(total)
            slab.copy_(total / sum(good))
            self._bytes_summed += 2 * (num - 1) / num * total.nbytes  # of a ring
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))

    def _start_late(
        self, sizes: Tensors, values: Tensors, then: Assignment, good: Sequence[bool]
    ) -> tuple[dict[str, Tensor], float]:
        """Start the exchange of what may arrive late; return where its means arrive, and the bytes due."""
        found = list(moves(self.plan, sizes, self.assignment, then, self._group.rank))
        new = self._new_tensors(sizes, then, {}, {})
        step = self._step(sizes, found, {name: values[name] for name in sizes}, new, then, good)
        self._bytes_late += step.bytes_to_send(self._wire.chunk)
        self._arrived = self._group.beside(step.run)
        return new, step.bytes_due

    def _wait_for_late(self) -> None:
        """Wait for what arrives late."""
        if self._arrived is not None:
            self._arrived()
        self._arrived = None

    def _gather(self, names: Sequence[str], *, only_first: bool) -> dict[str, Tensor]:
        """Return the full tensors ``names``; with ``only_first`` in the first process only (others get nothing)."""
        self._group.agree({"what the forward uses next (does it depend on the data?)": ", ".join(names) or "nothing"})
        if not names:
            return {}
        num = self._group.num_processes
        then = Everything(num).assign(self.plan.axes, 0)
        if only_first:
            then.held[1:] = False
        sizes = {name: self.sizes[name] for name in names}
        values = {name: tensor for name, tensor in self.tensors.items() if name in sizes}
        owned, in_subnets = gathering(self.plan, sizes, self.assignment, (0,) if only_first else tuple(range(num)))
        new = self._new_tensors(sizes, then, {}, {})
        step = self._step(sizes, owned, values, new, then, [True] * num)
        sent = self._wire.bytes_sent
        for some in (owned, in_subnets):
            replace(step, moves=some, average=False, wire="exact").run(self._wire)
        self._wire.bytes_sent = sent  # counts exchanges only
        return {} if only_first and self._group.rank else new

    def _new_tensors(self, sizes: Tensors, then: Assignment, values: Tensors, free: Tensors) -> dict[str, Tensor]:
        """Return the narrow tensors of the next round, to be written.

        Args:
            sizes: full-size tensors on the meta device, by name.
            then: who holds what in the next round.
            values: narrow tensors that stay where they are if the worker keeps these elements.
            free: tensors that may be written over.
        """
        now, after, new = self._cuts(self.assignment), self._cuts(then), {}
        for name, shape in after.shapes(sizes).items():
            full = sizes[name].shape
            if name in values and same_cut(now.of(name, full), after.of(name, full)):
                new[name] = values[name]
            else:
                new[name] = room(free.get(name), shape, sizes[name].dtype, place_of(name, shape, self._device))
        return new

    def _step(
        self,
        sizes: Tensors,
        some_moves: Sequence[Move],
        values: Tensors,
        new: Tensors,
        then: Assignment,
        good: Sequence[bool],
    ) -> LocalExchange:
        """Prepare to turn narrow tensors of this round, ``values``, into those of the next, ``new``."""
        rank = self._group.rank
        return LocalExchange(
            worker=rank,
            moves=some_moves,
            before=InSubnet(self.plan, self._cuts(self.assignment), values),
            after=InSubnet(self.plan, self._cuts(then), new),
            owned=Owned(self.plan, rank, self._group.num_processes, self._shard.owned),
            sizes=sizes,
            good=good,
            average=True,
            wire=self._wire_format,
            device=self._device,
            rng=generator("wire", self._group.round, rank, *list(sizes)[:1]),
        )

    def _add_new_state(self, tensors: Tensors) -> None:
        """Make room for optimizer state that appears with the first step."""
        in_blocks = trained_in_blocks(self.model, self.plan)
        found = optimizer_state.full_sizes(tensors, self.plan.shapes, in_blocks, self._start)
        new = {name: size for name, size in found.items() if name not in self.sizes}
        if new:
            self.sizes = dict(sorted({**self.sizes, **new}.items()))
        cuts, rank, num = self._cuts(self.assignment), self._group.rank, self._group.num_processes
        for name, size in new.items():
            held, owned = cuts.of(name, size.shape), owned_cut(self.plan, name, size.shape, rank, num)
            for place, cut, device in ((self._before, held, self._device), (self._shard.owned, owned, CPU)):
                if cut is not None:
                    shape = cut_shape(size.shape, cut)
                    place[name] = optimizer_state.blank(name, shape, size.dtype, self._start, device)

    def _check(self, tensors: Tensors) -> None:
        """Raise ValueError unless the worker made what the other processes expect."""
        for name, expected in self._cuts(self.assignment).shapes(self.sizes).items():
            size, got = self.sizes[name], tensors.get(name)
            if got is None or got.shape != expected or got.dtype != size.dtype:
                what = "nothing" if got is None else f"{got.dtype} of shape {tuple(got.shape)}"
                raise ValueError(
                    f"{name}: this worker made {what}, expected {size.dtype} of {tuple(expected)}; its optimizer or "
                    "model differs from the others'"
                )

    def _agreement(self, then: Assignment, overlap: bool) -> dict[str, str]:
        """Return everything that must be the same in all processes before they exchange."""
        held = [a.held.numpy().tobytes().hex() for a in (self.assignment, then)]
        sizes = [f"{name} {size.dtype} {tuple(size.shape)}" for name, size in self.sizes.items()]
        return {
            "plan": self._digest,
            "who holds what": f"{seed_of(*held):x}",
            "the tensors": f"{seed_of(*sizes):x}",
            "messages": f"of {self._wire.chunk} bytes, overlap {overlap}",
        }

    def _cuts(self, assignment: Assignment) -> Cuts:
        return Cuts(self.plan, assignment.units(self._group.rank))
