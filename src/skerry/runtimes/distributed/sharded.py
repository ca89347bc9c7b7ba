"""The store of a process that never holds the full model: its worker's subnet, and its share of what is in no subnet.

What it keeps between rounds: the narrow tensors of its subnet, optimizer state that travels included; of each tensor
whose elements may be in no subnet, the run that it owns (``exchange/owners.py``; the places of elements that are in
subnets now have old values there); and while its worker trains, a copy of the narrow tensors, so that a refused piece
keeps its old values (with ``overlap``, of what is averaged meanwhile, two copies: what the worker began with, and the
mean to come).

Tensors are exchanged in groups, so that what is known of their moves takes little memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from skerry.exchange.gathering import gathering
from skerry.exchange.moves import Known, Move, moves
from skerry.exchange.owners import owned_range, owner_dim
from skerry.model import optimizer_state
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.plan.table import trained_in_blocks
from skerry.randomness import generator, seed_of
from skerry.runtimes.distributed.local_exchange import LocalExchange
from skerry.runtimes.distributed.storage import InSubnet, Owned
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.overlap import BEGAN, correction, late_names
from skerry.runtimes.runtime import RESTING, Beginning, FullModel, Handover, Kept, Report, named_kept
from skerry.runtimes.streamed import Streamed
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract
from skerry.subnet.index import Index, cut_shape, same_cut


class Group(Protocol):
    """What the store needs of the process group."""

    rank: int
    num_processes: int
    round: int

    def reports(self, mine: Report, agreement: int) -> list[Report]:
        """Return everybody's, in order; raise ValueError where the agreement differs."""
        ...

    def agree(self, number: int, what: str) -> None:
        """Raise ValueError unless the number is the same everywhere."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        ...

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        """Call it, with a wire of its own, beside what comes next; return what waits for it."""
        ...


class Sharded:
    """One process's part of the store."""

    def __init__(self, group: Group, wire: Wire, beginning: Beginning, *, wire_format: WireFormat = "exact") -> None:
        model, plan, source = beginning.model, beginning.plan, beginning.source
        self.plan, self.assignment = plan, beginning.assignment
        self.model = skeleton(model)
        self._group, self._wire, self._wire_format = group, wire, wire_format
        self._digest, self._start = plan.digest(), beginning.start
        self._device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self.sizes = {n: torch.empty_like(t, device="meta") for n, t in named_tensors(self.model).items()}
        self.sizes |= beginning.state

        kept = (source.own(group.rank, self.assignment) if isinstance(source, Kept) else None) or {}
        kept = {name: self._placed(tensor) for name, tensor in kept.items()}
        cuts = self._cuts(self.assignment)
        self.tensors: dict[str, Tensor] = {}
        self.resting: dict[str, Tensor] = {}
        for name, size in self.sizes.items():
            cut, run = cuts.of(name, size.shape), self._owned_run(name, size)
            if cut is not None:
                self.tensors[name] = kept[name] if name in kept else self._placed(source.read(name, cut))
            if run is not None:
                dim, index = run
                owned = tuple(index if d == dim else None for d in range(size.dim()))
                at_rest = f"{RESTING}{name}"
                self.resting[name] = kept[at_rest] if at_rest in kept else source.read(name, owned)
        mark = f"{BEGAN}{group.rank}::"
        self._began = {n.removeprefix(mark): t for n, t in kept.items() if n.startswith(mark)}
        by_itself = source.kept_by(group.rank) if isinstance(source, Kept) else {}
        self.kept = {group.rank: {n: self._placed(t) for n, t in by_itself.items()}}

        self._subnet: nn.Module | None = None  # as long as the worker keeps its units
        self._before: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}  # old tensors, to be written over: new memory costs time
        self._arrived: Callable[[], None] | None = None
        self._bytes_late = 0

    @property
    def layout(self) -> Assignment:
        """Who holds what of ``shards``."""
        return self.assignment

    @property
    def bytes_sent(self) -> float:
        """Bytes this process has sent for exchanges."""
        return float(self._wire.bytes_sent + self._bytes_late)

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Return the subnet that is here."""
        if self._subnet is None:
            self._subnet = extract(self.model, self.plan, self.assignment.units(worker))
        now = {name: tensor for name, tensor in self.tensors.items() if name not in self._began}
        self._before = {n: _room(n, t, self._spare, t.device).copy_(t) for n, t in now.items()}
        self._spare = {}
        now |= {name: tensor.clone() for name, tensor in self._began.items()}
        fill_(self._subnet, now)
        return self._subnet, {n: t for n, t in now.items() if optimizer_state.SEPARATOR in n}

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Wait for the means; return what is missing to them."""
        self._settle()
        for name, tensor in self._began.items():
            yield name, correction(self.tensors[name], tensor)

    @torch.no_grad()
    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Send what others will hold, receive what the worker here will hold."""
        self._settle()
        (own,) = mine
        self._add_new_state(own.tensors)
        self._check(own.tensors)
        reports = self._group.reports(own.report, self._agreement(then, overlap))
        good = [report.good for report in reports]
        if not torch.equal(self.assignment.held[self._group.rank], then.held[self._group.rank]):
            self._subnet = None
        handed = {name: tensor.detach() for name, tensor in own.tensors.items()}
        before, self._before = self._before, {}
        # Of a refused piece nothing counts; where all are refused, everything stays as it was.
        tensors = handed if own.report.good else before | {name: self.tensors[name] for name in self._began}
        begin = handed if own.report.good else tensors | self._began
        late = late_names(self.model, self.plan, self.assignment, then) if overlap else []
        # What is not needed any more is written over, where it fits; the rest goes now.
        shapes = {n: shape for n, shape in self._cuts(then).shapes(self.sizes).items() if n not in late}
        old = before if own.report.good else {n: t for n, t in self.tensors.items() if n not in self._began}
        free = {name: tensor for name, tensor in old.items() if shapes.get(name) == tensor.shape}
        old = self.tensors if own.report.good else before
        del before
        due = torch.zeros(len(reports), dtype=torch.float64)
        early = {name: size for name, size in self.sizes.items() if name not in late}
        after, due[self._group.rank] = self._exchange_now(early, tensors, then, good, free)
        self._began = {name: begin[name] for name in late}
        if late:
            step = self._step(
                self._moves(then, {name: self.sizes[name] for name in late}, {}),
                {name: tensors[name] for name in late},
                then,
                {name: self.sizes[name] for name in late},
                good,
                fresh=True,
            )
            due[self._group.rank] += step.bytes_due
            self._bytes_late += step.bytes_to_send(self._wire.chunk)
            after |= step.after.tensors
            self._arrived = self._group.beside(step.run)
        used = {tensor.data_ptr() for tensor in after.values()}
        left = [(n, t) for n, t in [*old.items(), *free.items()] if t.data_ptr() not in used]
        self._spare = {name: tensor for name, tensor in left if shapes.get(name) == tensor.shape}
        self.tensors, self.assignment = after, then
        return [replace(r, bytes_due=d) for r, d in zip(reports, self._group.total(due).tolist(), strict=True)]

    def full(self, share: Tensor) -> FullModel:
        """Return the full model, of which tensors arrive when they are used."""
        self._settle()
        self._spare = {}  # evaluation needs memory
        return Streamed(self.model, self.plan, share, self._everywhere)

    def shards(self) -> dict[str, Tensor]:
        """Return the narrow tensors under their names, and the rest under theirs with a prefix."""
        self._settle()
        began = {f"{BEGAN}{self._group.rank}::{name}": tensor for name, tensor in self._began.items()}
        at_rest = {f"{RESTING}{name}": tensor for name, tensor in self.resting.items()}
        return self.tensors | at_rest | began | named_kept(self.kept)

    def _exchange_now(
        self,
        sizes: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        then: Assignment,
        good: Sequence[bool],
        free: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], float]:
        """Exchange all that has ``sizes``, a group at a time; return the new narrow tensors and the bytes due."""
        after: dict[str, Tensor] = {}
        due = 0.0
        known: Known = {}
        for group in _groups(sizes):
            seen = set(known)
            step = self._step(self._moves(then, group, known), tensors, then, group, good, free=free)
            step.run(self._wire)
            due += step.bytes_due
            after |= step.after.tensors
            if len(known) > _ROWS_KNOWN:  # keep what this group has found
                known = {row: found for row, found in known.items() if row not in seen}
        return after, due

    def _settle(self) -> None:
        """Wait for what is to arrive late."""
        if self._arrived is not None:
            self._arrived()
        self._arrived = None

    def _agreement(self, then: Assignment, overlap: bool) -> int:
        """A number of all that processes must agree on before they exchange."""
        held = [bytes(a.held.numpy().tobytes()).hex() for a in (self.assignment, then)]
        sizes = [f"{name} {size.dtype} {tuple(size.shape)}" for name, size in self.sizes.items()]
        return seed_of(self._digest, *held, *sizes, self._wire_format, self._wire.chunk, overlap)

    def _everywhere(self, names: Sequence[str], *, only_first: bool) -> dict[str, Tensor]:
        """Return the full tensors ``names``; with ``only_first`` in the first process only (others get nothing)."""
        self._group.agree(seed_of("gather", *names), "what the forward uses next (does it depend on the data?)")
        if not names:
            return {}
        then = Everything(self._group.num_processes).assign(self.plan.axes, 0)
        if only_first:
            then.held[1:] = False
        sizes = {name: self.sizes[name] for name in names}
        tensors = {n: t for n, t in self.tensors.items() if n in sizes}
        targets = (0,) if only_first else tuple(range(self._group.num_processes))
        owned, in_subnets = gathering(self.plan, sizes, self.assignment, targets)
        sent, good = self._wire.bytes_sent, [True] * self._group.num_processes
        step = self._step(owned, tensors, then, sizes, good, wire="exact", average=False, fresh=True)
        step.run(self._wire)
        replace(step, moves=in_subnets).run(self._wire)
        self._wire.bytes_sent = sent  # exchanges only
        return {} if only_first and self._group.rank else dict(step.after.tensors)

    def _add_new_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for optimizer state that appears with the first step."""
        in_blocks = trained_in_blocks(self.model, self.plan)
        for name, size in optimizer_state.full_sizes(tensors, self.plan.shapes, in_blocks).items():
            if name in self.sizes:
                continue
            self.sizes = dict(sorted({**self.sizes, name: size}.items()))
            cut, run = self._cuts(self.assignment).of(name, size.shape), self._owned_run(name, size)
            if cut is not None:
                shape = cut_shape(size.shape, cut)
                self._before[name] = optimizer_state.blank(name, shape, size.dtype, self._start, self._device)
            if run is not None:
                dim, index = run
                shape = torch.Size(len(index) if d == dim else s for d, s in enumerate(size.shape))
                self.resting[name] = optimizer_state.blank(name, shape, size.dtype, self._start, self._device)

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to hand over what is not as the others expect."""
        for name, expected in self._cuts(self.assignment).shapes(self.sizes).items():
            size, got = self.sizes[name], tensors.get(name)
            if got is None or got.shape != expected or got.dtype != size.dtype:
                what = "nothing" if got is None else f"{got.dtype} of shape {tuple(got.shape)}"
                raise ValueError(
                    f"{name}: this worker made {what}, expected {size.dtype} of {tuple(expected)}; its optimizer or "
                    "model differs from the others'"
                )

    def _cuts(self, assignment: Assignment) -> Cuts:
        return Cuts(self.plan, assignment.units(self._group.rank))

    def _owned_run(self, name: str, size: Tensor) -> tuple[int, Index] | None:
        """Return the dim and the indices of the run that this process owns of a tensor; None if there is none."""
        dim = owner_dim(self.plan, name, size.shape)
        if dim is None:
            return None
        return dim, Index.run(*owned_range(size.shape[dim], self._group.rank, self._group.num_processes))

    def _placed(self, tensor: Tensor) -> Tensor:
        """Put a tensor where training is; counts stay where optimizers want them."""
        return tensor.to(self._device) if tensor.dim() else tensor

    def _moves(self, then: Assignment, sizes: Mapping[str, Tensor], known: Known) -> list[Move]:
        return list(moves(self.plan, sizes, self.assignment, then, self._group.rank, known))

    def _step(
        self,
        moves: Sequence[Move],
        tensors: Mapping[str, Tensor],
        then: Assignment,
        sizes: Mapping[str, Tensor],
        good: Sequence[bool],
        *,
        wire: WireFormat | None = None,
        average: bool = True,
        fresh: bool = False,
        free: Mapping[str, Tensor] | None = None,
    ) -> LocalExchange:
        """Prepare to turn narrow ``tensors`` of the assignment now into those of the next, of all that has ``sizes``.

        With ``fresh`` no tensor stays where it is; ``free`` has tensors that may be written over.
        """
        rank, num = self._group.rank, self._group.num_processes
        now, after = self._cuts(self.assignment), self._cuts(then)
        new = {}
        for name, size in sizes.items():
            cut = after.of(name, size.shape)
            if cut is None:
                continue
            if not fresh and name in tensors and same_cut(now.of(name, size.shape), cut):
                new[name] = tensors[name]
            else:
                empty = torch.empty(cut_shape(size.shape, cut), dtype=size.dtype, device="meta")
                new[name] = _room(name, empty, free or {}, self._device)
        return LocalExchange(
            worker=rank,
            moves=moves,
            before=InSubnet(self.plan, now, tensors),
            after=InSubnet(self.plan, after, new),
            owned=Owned(self.plan, rank, num, self.resting),
            sizes=sizes,
            good=good,
            average=average,
            wire=wire or self._wire_format,
            rng=generator("wire", self._group.round, rank, *list(sizes)[:1]),
        )


_GROUP_BYTES = 2**27
_ROWS_KNOWN = 4
"""Moves of so many table rows are remembered; blocks of a net often have the same."""


def _groups(sizes: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Cut the full-size tensors, in the order of their names, into groups of at most 128 MiB (or of one tensor)."""
    group: dict[str, Tensor] = {}
    room = _GROUP_BYTES
    for name in sorted(sizes):
        if group and sizes[name].nbytes > room:
            yield group
            group, room = {}, _GROUP_BYTES
        group[name] = sizes[name]
        room -= sizes[name].nbytes
    if group:
        yield group


def _room(name: str, like: Tensor, free: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Return a tensor to write to: the free one of that name if it fits, else a new one."""
    found = free.get(name)
    if found is not None and (found.shape, found.dtype) == (like.shape, like.dtype) and found.is_contiguous():
        return found
    return torch.empty_like(like, device=device, memory_format=torch.contiguous_format)
