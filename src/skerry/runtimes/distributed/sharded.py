"""The store of a process that never holds the full model: its worker's subnet, and its share of what nobody trains.

What it keeps between rounds: the narrow tensors of its subnet, optimizer state that travels included; of each tensor
whose elements may be without a holder, the run that it is home to (``exchange.py``; the places of elements that are in
subnets now are there, too, with old values); and while its worker trains, a copy of the narrow tensors, so that a piece
that must be refused keeps its old values (with ``overlap``, of what is averaged meanwhile, two copies: what the worker
began with, and the mean to come).

Tensors are dealt in groups, so that what is known of their moves takes little memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from skerry.exchange.gathering import gathering
from skerry.exchange.homes import home_dim, home_range
from skerry.exchange.moves import Known, Move, moves
from skerry.model import optimizer_state
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.plan.table import trained_in_blocks
from skerry.randomness import generator, seed_of
from skerry.runtimes.distributed.dealing import Dealing, Place
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.overlap import BEGAN, correction, late_names
from skerry.runtimes.runtime import RESTING, Beginning, FullModel, Handover, Kept, Report, named_kept
from skerry.runtimes.streamed import Streamed
from skerry.subnet.cuts import Cut, cut_of, cut_shape, cuts
from skerry.subnet.extract import extract


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
        model, plan, source, assignment = beginning.model, beginning.plan, beginning.source, beginning.assignment
        self.assignment = assignment
        self.model = skeleton(model)
        self.plan, self._digest = plan, plan.digest()
        self._group, self._wire, self._wire_format = group, wire, wire_format
        self._start = beginning.start
        device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self.sizes = {n: torch.empty_like(t, device="meta") for n, t in named_tensors(self.model).items()}
        self.sizes |= beginning.state
        kept = source.own(group.rank, assignment) if isinstance(source, Kept) else None
        kept = kept or {}
        by_name = cuts(plan, assignment.units(group.rank))
        found = {n: cut_of(plan, by_name, n, t.shape) for n, t in self.sizes.items()}
        self.tensors = {
            n: _placed(kept[n] if n in kept else source.read(n, cut), device)
            for n, cut in found.items()
            if cut is not None
        }
        self.resting: dict[str, Tensor] = {}
        for name, size in self.sizes.items():
            dim = home_dim(plan, name, size.shape)
            if f"{RESTING}{name}" in kept:
                self.resting[name] = _placed(kept[f"{RESTING}{name}"], device)
            elif dim is not None:
                run = slice(*home_range(size.shape[dim], group.rank, group.num_processes))
                self.resting[name] = source.read(name, tuple((run,) if d == dim else None for d in range(size.dim())))
        self._before: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}  # old tensors, to be written over: new memory costs time
        mark = f"{BEGAN}{group.rank}::"
        self._began = {n.removeprefix(mark): _placed(t, device) for n, t in kept.items() if n.startswith(mark)}
        by_itself = source.kept_by(group.rank) if isinstance(source, Kept) else {}
        self.kept = {group.rank: {n: _placed(t, device) for n, t in by_itself.items()}}
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
        subnet = extract(self.model, self.plan, self.assignment.units(worker))
        now = {name: tensor for name, tensor in self.tensors.items() if name not in self._began}
        self._before = {n: _room(n, t, self._spare, t.device).copy_(t) for n, t in now.items()}
        self._spare = {}
        now |= {name: tensor.clone() for name, tensor in self._began.items()}
        fill_(subnet, now)
        return subnet, {n: t for n, t in now.items() if optimizer_state.SEPARATOR in n}

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
        for name, size in optimizer_state.full_sizes(
            own.tensors, self.plan.shapes, trained_in_blocks(self.model, self.plan)
        ).items():
            if name not in self.sizes:  # optimizer state appears with the first step
                self._add_state(name, size)
        self._check(own.tensors)
        reports = self._group.reports(own.report, self._agreement(then, overlap))
        handed = {name: tensor.detach() for name, tensor in own.tensors.items()}
        before, self._before = self._before, {}
        # Of a refused piece nothing counts; where all are refused, everything stays as it was.
        tensors = handed if own.report.good else before | {name: self.tensors[name] for name in self._began}
        begin = handed if own.report.good else tensors | self._began
        good = [report.good for report in reports]
        late = late_names(self.model, self.plan, self.assignment, then) if overlap else []
        # What is not needed any more is written over, where it fits; the rest goes now.
        shapes = {name: shape for name, shape in self._narrow(then).items() if name not in late}
        old = before if own.report.good else {n: t for n, t in self.tensors.items() if n not in self._began}
        free = {name: tensor for name, tensor in old.items() if shapes.get(name) == tensor.shape}
        old = self.tensors if own.report.good else before
        del before
        due = torch.zeros(len(reports), dtype=torch.float64)
        after: dict[str, Tensor] = {}
        early = {name: size for name, size in self.sizes.items() if name not in late}
        known: Known = {}
        for sizes in _groups(early):
            seen = set(known)
            moves = self._moves(then, sizes, known)
            dealing = self._dealing(moves, tensors, then, sizes, good, self._wire_format, free=free)
            dealing.run(self._wire)
            due[self._group.rank] += dealing.bytes_due
            after |= dealing.there.tensors
            if len(known) > _ROWS_KNOWN:  # keep what this group has found
                known = {row: found for row, found in known.items() if row not in seen}
        self._began = {name: begin[name] for name in late}
        if late:
            sizes = {name: self.sizes[name] for name in late}
            dealing = self._dealing(
                self._moves(then, sizes, {}),
                {n: tensors[n] for n in late},
                then,
                sizes,
                good,
                self._wire_format,
                fresh=True,
            )
            due[self._group.rank] += dealing.bytes_due
            self._bytes_late += dealing.bytes_to_send(self._wire.chunk)
            after |= dealing.there.tensors
            self._arrived = self._group.beside(dealing.run)
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
        return (
            self.tensors
            | {f"{RESTING}{name}": tensor for name, tensor in self.resting.items()}
            | began
            | named_kept(self.kept)
        )

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
        good = [True] * self._group.num_processes
        sent = self._wire.bytes_sent
        targets = (0,) if only_first else tuple(range(self._group.num_processes))
        at_rest, in_subnets = gathering(self.plan, sizes, self.assignment, targets)
        first = self._dealing(at_rest, tensors, then, sizes, good, "exact", average=False, fresh=True)
        first.run(self._wire)
        replace(first, moves=in_subnets).run(self._wire)
        self._wire.bytes_sent = sent  # exchanges only
        return {} if only_first and self._group.rank else dict(first.there.tensors)

    def _add_state(self, name: str, size: Tensor) -> None:
        """Make room for optimizer state that has just appeared."""
        self.sizes = dict(sorted({**self.sizes, name: size}.items()))
        by_name = cuts(self.plan, self.assignment.units(self._group.rank))
        cut = cut_of(self.plan, by_name, name, size.shape)
        device = next(iter(self.tensors.values())).device
        if cut is not None:
            shape = cut_shape(size.shape, cut)
            self._before[name] = optimizer_state.blank(name, shape, size.dtype, self._start, device)
        dim = home_dim(self.plan, name, size.shape)
        if dim is not None:
            begin, end = home_range(size.shape[dim], self._group.rank, self._group.num_processes)
            shape = torch.Size(end - begin if d == dim else s for d, s in enumerate(size.shape))
            self.resting[name] = optimizer_state.blank(name, shape, size.dtype, self._start, device)

    def _narrow(self, assignment: Assignment) -> dict[str, torch.Size]:
        """The shapes of the worker's tensors."""
        by_name = cuts(self.plan, assignment.units(self._group.rank))
        found = {name: cut_of(self.plan, by_name, name, size.shape) for name, size in self.sizes.items()}
        return {name: cut_shape(self.sizes[name].shape, cut) for name, cut in found.items() if cut is not None}

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to hand over what is not as the others expect."""
        for name, expected in self._narrow(self.assignment).items():
            size, got = self.sizes[name], tensors.get(name)
            if got is None or got.shape != expected or got.dtype != size.dtype:
                what = "nothing" if got is None else f"{got.dtype} of shape {tuple(got.shape)}"
                raise ValueError(
                    f"{name}: this worker made {what}, expected {size.dtype} of {tuple(expected)}; its optimizer or "
                    "model differs from the others'"
                )

    def _moves(self, then: Assignment, sizes: Mapping[str, Tensor], known: Known) -> list[Move]:
        return list(moves(self.plan, sizes, self.assignment, then, self._group.rank, known))

    def _dealing(
        self,
        moves: Sequence[Move],
        tensors: Mapping[str, Tensor],
        then: Assignment,
        sizes: Mapping[str, Tensor],
        good: Sequence[bool],
        wire: WireFormat,
        *,
        average: bool = True,
        fresh: bool = False,
        free: Mapping[str, Tensor] | None = None,
    ) -> Dealing:
        """Prepare to turn narrow ``tensors`` of the assignment now into those of the next, of all that has ``sizes``.

        With ``fresh`` no tensor stays where it is; ``free`` has tensors that may be written over.
        """
        rank, device = self._group.rank, next((t.device for t in tensors.values()), torch.device("cpu"))
        now, after = (cuts(self.plan, assignment.units(rank)) for assignment in (self.assignment, then))
        new = {}
        for name, size in sizes.items():
            cut = cut_of(self.plan, after, name, size.shape)
            if cut is None:
                continue
            if not fresh and name in tensors and same_cut(cut_of(self.plan, now, name, size.shape), cut):
                new[name] = tensors[name]
            else:
                empty = torch.empty(cut_shape(size.shape, cut), dtype=size.dtype, device="meta")
                new[name] = _room(name, empty, free or {}, device)
        return Dealing(
            moves=moves,
            here=Place(self.plan, self.assignment, rank, tensors),
            there=Place(self.plan, then, rank, new),
            resting=self.resting,
            sizes=sizes,
            good=good,
            average=average,
            wire=wire,
            rng=generator("wire", self._group.round, rank, *list(sizes)[:1]),
        )


_GROUP_BYTES = 2**27
_ROWS_KNOWN = 4
"""Of so many table rows moves are remembered; blocks of a net often have the same."""


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


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Put a tensor where training is; counts stay where optimizers want them."""
    return tensor.to(device) if tensor.dim() else tensor


def same_cut(one: Cut | None, other: Cut | None) -> bool:
    """Tell whether two cuts of a tensor hold the same."""
    if one is None or other is None or len(one) != len(other):
        return one is other
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b) and a == b
        for a, b in zip(one, other, strict=True)
    )
