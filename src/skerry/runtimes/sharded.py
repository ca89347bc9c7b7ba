"""The store of a process that never holds the full model: its worker's subnet, and its share of what nobody trains.

What it keeps between rounds: the narrow tensors of its subnet, optimizer state that travels included; of each tensor
whose elements may be without a holder, the run that it is home to (``exchange.py``; the places of elements that are in
subnets now are there, too, with old values); and while its worker trains, a copy of the narrow tensors, so that a piece
that must be refused keeps its old values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from skerry import exchange, optimizer_state
from skerry.exchange import Move, Stages, home_dim, home_range
from skerry.partition import Assignment, Everything
from skerry.plan import Plan, named_tensors, plan_digest, trained_in_blocks
from skerry.randomness import generator, seed_of
from skerry.runtimes.dealing import Dealing, Place
from skerry.runtimes.runtime import RESTING, FullModel, Handover, Report
from skerry.runtimes.streamed import Streamed
from skerry.runtimes.wire import Wire, WireFormat
from skerry.sources import Source, skeleton
from skerry.subnet import Cut, cut_of, cut_shape, cuts, extract, fill_


@runtime_checkable
class Kept(Protocol):
    """A source that may have just what a process kept."""

    def own(self, worker: int, assignment: Assignment) -> Mapping[str, Tensor] | None:
        """Return it, if it was kept for ``assignment``."""
        ...


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


@dataclass(frozen=True, eq=False)
class _Plan:
    """What this process has to do in an exchange."""

    moves: Sequence[Move]
    stages: Stages
    then: Assignment
    sizes: Mapping[str, Tensor]
    average: bool


class Sharded:
    """One process's part of the store."""

    def __init__(
        self,
        group: Group,
        wire: Wire,
        model: nn.Module,
        plan: Plan,
        source: Source,
        assignment: Assignment,
        start: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        *,
        wire_format: WireFormat = "exact",
    ) -> None:
        self.assignment = assignment
        self.model = skeleton(model)
        self.plan, self._digest = plan, plan_digest(plan)
        self._group, self._wire, self._wire_format = group, wire, wire_format
        self._start = start
        device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self.sizes = {n: torch.empty_like(t, device="meta") for n, t in named_tensors(self.model).items()}
        self.sizes |= state
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

    @property
    def layout(self) -> Assignment:
        """Who holds what of ``shards``."""
        return self.assignment

    @property
    def bytes_sent(self) -> float:
        """Bytes this process has sent for exchanges."""
        return float(self._wire.bytes_sent)

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Return the subnet that is here."""
        subnet = extract(self.model, self.plan, self.assignment.units(worker))
        fill_(subnet, self.tensors)
        self._before = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return subnet, {n: t for n, t in self.tensors.items() if optimizer_state.SEPARATOR in n}

    @torch.no_grad()
    def exchange(self, mine: list[Handover], then: Assignment) -> list[Report]:
        """Send what others will hold, receive what the worker here will hold."""
        (own,) = mine
        for name, size in optimizer_state.full_sizes(
            own.tensors, self.plan.shapes, trained_in_blocks(self.model, self.plan)
        ).items():
            if name not in self.sizes:  # optimizer state appears with the first step
                self._add_state(name, size)
        self._check(own.tensors)
        planned = self._plan(then, self.sizes, average=True)
        due = planned.stages.bytes_from(self._group.rank, self.sizes)
        reports = self._group.reports(replace(own.report, bytes_due=due), self._agreement(then))
        tensors = {n: t.detach() for n, t in own.tensors.items()} if own.report.good else self._before
        self._before = {}
        good = [report.good for report in reports]
        self.tensors = self._deal(tensors, planned, good, self._wire_format)
        self.assignment = then
        return reports

    def full(self, share: Tensor) -> FullModel:
        """Return the full model, of which tensors arrive when they are used."""
        return Streamed(self.model, self.plan, share, self._everywhere)

    def shards(self) -> dict[str, Tensor]:
        """Return the narrow tensors under their names, and the resting runs under theirs with a prefix."""
        return self.tensors | {f"{RESTING}{name}": tensor for name, tensor in self.resting.items()}

    def _agreement(self, then: Assignment) -> int:
        """A number of all that processes must agree on before they exchange."""
        held = [bytes(a.held.numpy().tobytes()).hex() for a in (self.assignment, then)]
        sizes = [f"{name} {size.dtype} {tuple(size.shape)}" for name, size in self.sizes.items()]
        return seed_of(self._digest, *held, *sizes, self._wire_format, self._wire.chunk)

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
        full = self._deal(tensors, self._plan(then, sizes, average=False), good, "exact")
        self._wire.bytes_sent = sent  # exchanges only
        if only_first and self._group.rank:
            return {}
        return {n: t.clone() if t is tensors.get(n) else t for n, t in full.items()}  # what is here is not to be scaled

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

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to hand over what is not as the others expect."""
        by_name = cuts(self.plan, self.assignment.units(self._group.rank))
        for name, size in self.sizes.items():
            cut = cut_of(self.plan, by_name, name, size.shape)
            if cut is None:
                continue
            expected, got = cut_shape(size.shape, cut), tensors.get(name)
            if got is None or got.shape != expected or got.dtype != size.dtype:
                what = "nothing" if got is None else f"{got.dtype} of shape {tuple(got.shape)}"
                raise ValueError(
                    f"{name}: this worker made {what}, expected {size.dtype} of {tuple(expected)}; its optimizer or "
                    "model differs from the others'"
                )

    def _plan(self, then: Assignment, sizes: Mapping[str, Tensor], *, average: bool) -> "_Plan":
        moves = list(exchange.moves(self.plan, sizes, self.assignment, then, self._group.rank))
        return _Plan(moves, exchange.transfers(moves, sizes, average=average), then, sizes, average)

    def _deal(
        self, tensors: dict[str, Tensor], planned: "_Plan", good: Sequence[bool], wire: WireFormat
    ) -> dict[str, Tensor]:
        """Turn the narrow tensors of the assignment now into those of the next, together with all other processes."""
        rank, sizes, then = self._group.rank, planned.sizes, planned.then
        here = Place(self.plan, self.assignment, rank, tensors)
        there = Place(self.plan, then, rank, self._new_tensors(tensors, then, sizes))
        rng = generator("wire", self._group.round, rank)
        dealing = Dealing(here, there, self.resting, sizes, good, planned.average, wire, rng)
        for move in planned.moves:
            dealing.keep_own(move, self._wire.chunk)
        dealing.send(self._wire, planned.stages.first, dealing.read_first, dealing.write_first)
        dealing.send(self._wire, planned.stages.second, dealing.read_second, dealing.write_second)
        return there.tensors

    def _new_tensors(
        self, tensors: Mapping[str, Tensor], then: Assignment, sizes: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return tensors to write to: those that are here where a worker keeps exactly what it had."""
        units_now, units_then = self.assignment.units(self._group.rank), then.units(self._group.rank)
        now, after = cuts(self.plan, units_now), cuts(self.plan, units_then)
        device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
        new = {}
        for name, size in sizes.items():
            cut = cut_of(self.plan, after, name, size.shape)
            if cut is None:
                continue
            if name in tensors and same_cut(cut_of(self.plan, now, name, size.shape), cut):
                new[name] = tensors[name]
            else:
                new[name] = torch.empty(cut_shape(size.shape, cut), dtype=size.dtype, device=device)
        return new


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
