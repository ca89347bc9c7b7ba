"""Partition: which worker holds which units in a round.

A partition is a pure function of (seed, round): every process derives the same assignment by itself and nothing about
it is ever sent. An assignment speaks of units only; ``subnet.py`` turns a worker's units into a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from skerry.plan import Axis
from skerry.randomness import generator


@dataclass(frozen=True)
class Assignment:
    """Who holds what in one round: ``held[worker, unit]``, bool, over the global unit ids."""

    held: Tensor

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return self.held.shape[0]

    def units(self, worker: int) -> Tensor:
        """The sorted global ids, int64, of the units that ``worker`` holds."""
        return self.held[worker].nonzero().flatten()

    def share(self) -> Tensor:
        """For each unit the fraction of workers that hold it, float64: the chance that a subnet has the unit."""
        return self.held.double().mean(0)


_ROUNDS_KNOWN = 4


class Partition(Protocol):
    """A rule that assigns units to workers, round by round."""

    @property
    def num_workers(self) -> int:
        """The number of workers it deals to."""
        ...

    @property
    def covers(self) -> bool:
        """Whether every unit has a holder in every round."""
        ...

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``, counted from 0; it is asked for rounds to come, too."""
        ...

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return for each unit the chance that a subnet has it, over workers and over rounds like ``round``, float64.

        What reads the unit is scaled by it in the full model (``calibrate.py``).
        """
        ...


@dataclass(frozen=True)
class Everything:
    """Every worker holds every unit: full replicas, as in local SGD."""

    num_workers: int
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_workers(self.num_workers)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return the assignment in which everybody holds everything."""
        return Assignment(torch.ones(self.num_workers, _num_units(axes), dtype=torch.bool))

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return ones."""
        return self.assign(axes, round).share()


@dataclass(frozen=True)
class Disjoint:
    """Every unit has one holder (independent subnet training), but for an optional core that all hold.

    Each round a fraction ``reshuffle`` of an axis's dealt units, drawn at random, goes back into the pot and is dealt
    again. A unit may come back to the worker it left, so the fraction that changes hands is ``reshuffle * (1 - 1/n)``
    in expectation for n equal workers. 1.0 deals everything anew each round, as IST does; 0.0 never deals again.
    A worker keeps the number of units it has for the whole run.

    Args:
        num_workers: the number of workers n.
        seed: of the dealing.
        reshuffle: the fraction of units dealt again each round, 0 to 1.
        capacities: a positive weight a worker; the dealt units are dealt in proportion. None: equal.
        core: the fraction of each axis (its first units) that every worker holds and that is averaged, 0 to 1.

    Raises:
        ValueError: a value out of range, or, on dealing, an axis with fewer units than workers.

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, 2022, arXiv 1910.02120, section 3.
    """

    num_workers: int
    seed: int = 0
    reshuffle: float = 1.0
    capacities: tuple[float, ...] | None = None
    core: float = 0.0
    covers: ClassVar[bool] = True
    # axis -> round -> owners, of the last few rounds asked for: dealing again starts there instead of at round 0.
    _known: dict[Axis, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_workers(self.num_workers)
        for name, value in (("reshuffle", self.reshuffle), ("core", self.core)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value}: expected a fraction from 0 to 1")
        if self.capacities is not None:
            if len(self.capacities) != self.num_workers:
                raise ValueError(
                    f"capacities: {len(self.capacities)} values, expected one a worker ({self.num_workers})"
                )
            if not all(0 < c < float("inf") for c in self.capacities):
                raise ValueError(f"capacities={self.capacities}: expected positive numbers")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal the units of ``axes`` for ``round``."""
        held = torch.zeros(self.num_workers, _num_units(axes), dtype=torch.bool)
        for axis in axes:
            num_core = int(self.core * axis.num_units + 0.5)
            held[:, axis.start : axis.start + num_core] = True
            owners = self._owners(axis, axis.num_units - num_core, round)
            held[owners, torch.arange(axis.start + num_core, axis.start + axis.num_units)] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for a dealt unit, 1 for one of the core."""
        return self.assign(axes, round).share()

    def _owners(self, axis: Axis, num_dealt: int, round: int) -> Tensor:
        """The holder of each dealt unit of ``axis`` in ``round``, int64."""
        if self.reshuffle == 1.0:
            return self._deal(axis, num_dealt, round)
        known = self._known.setdefault(axis, {})
        at = max((r for r in known if r <= round), default=0)
        owners = known[at] if at in known else self._deal(axis, num_dealt, 0)
        for r in range(at + 1, round + 1):
            owners = self._deal_again(axis, owners, r)
        known[round] = owners
        while len(known) > _ROUNDS_KNOWN:
            del known[next(iter(known))]
        return owners

    def _deal(self, axis: Axis, num_dealt: int, round: int) -> Tensor:
        need_one = num_dealt == axis.num_units  # a worker with a share of the core does not need a unit of its own
        sizes = _sizes(num_dealt, self.capacities or (1.0,) * self.num_workers, int(need_one), axis)
        owners = torch.arange(self.num_workers).repeat_interleave(torch.tensor(sizes))
        return owners[torch.randperm(num_dealt, generator=generator(self.seed, "deal", axis.name, round))]

    def _deal_again(self, axis: Axis, owners: Tensor, round: int) -> Tensor:
        rng = generator(self.seed, "deal again", axis.name, round)
        # Pairs of units, rounded by chance: exact in the mean where a round's share is less than a unit.
        pairs = self.reshuffle * len(owners) / 2 + float(torch.rand((), generator=rng, dtype=torch.float64))
        pot = torch.randperm(len(owners), generator=rng)[: 2 * int(pairs)]
        again = owners.clone()
        again[pot] = owners[pot.roll(1)]  # each takes the place of another drawn at random
        return again


@dataclass(frozen=True)
class Overlapping:
    """Every unit is on ``copies`` different workers and averaged over them; everything is dealt anew each round.

    Raises:
        ValueError: ``copies`` is not from 1 to ``num_workers``, or an axis has fewer units than workers.

    References:
        Dun, Wolfe, Jermaine, Kyrillidis: ResIST, 2022, arXiv 2107.00961: blocks given to several workers.
    """

    num_workers: int
    copies: int
    seed: int = 0
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_workers(self.num_workers)
        if not 1 <= self.copies <= self.num_workers:
            raise ValueError(f"copies={self.copies}: expected 1 to {self.num_workers}, the number of workers")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal the units of ``axes`` for ``round``."""
        held = torch.zeros(self.num_workers, _num_units(axes), dtype=torch.bool)
        for axis in axes:
            if axis.num_units < self.num_workers:
                raise _too_few_units(axis, self.num_workers)
            rng = generator(self.seed, "overlap", axis.name, round)
            first = torch.randperm(axis.num_units, generator=rng) % self.num_workers
            units = torch.arange(axis.start, axis.start + axis.num_units)
            # The same shifts for all units keep the numbers of units a worker within one copy of each other.
            for shift in torch.randperm(self.num_workers, generator=rng)[: self.copies].tolist():
                held[(first + shift) % self.num_workers, units] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return copies/n."""
        return self.assign(axes, round).share()


def _num_units(axes: Sequence[Axis]) -> int:
    return sum(axis.num_units for axis in axes)


def _check_workers(num_workers: int) -> None:
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: expected at least 1")


def _sizes(num_dealt: int, capacities: Sequence[float], minimum: int, axis: Axis) -> list[int]:
    """Deal ``num_dealt`` in proportion to ``capacities`` by largest remainder, at least ``minimum`` each."""
    if num_dealt < minimum * len(capacities):
        raise _too_few_units(axis, len(capacities))
    spare = num_dealt - minimum * len(capacities)
    ideal = [num_dealt * c / sum(capacities) for c in capacities]
    above = [max(0.0, want - minimum) for want in ideal]
    total = sum(above) or 1.0
    exact = [spare * a / total for a in above]
    sizes = [int(e) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda w: (sizes[w] - exact[w], w))
    for w in by_remainder[: spare - sum(sizes)]:
        sizes[w] += 1
    return [size + minimum for size in sizes]


def _too_few_units(axis: Axis, num_workers: int) -> ValueError:
    return ValueError(
        f"axis '{axis.name}': {axis.num_units} units for {num_workers} workers, expected at least one a worker; "
        "use fewer workers or leave the axis whole"
    )
