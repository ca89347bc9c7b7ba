"""Disjoint dealing: every unit on one worker, dealt again each round in whole or in part (IST)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held, too_few_units
from skerry.plan.dims import Axis
from skerry.randomness import generator

_MAX_CACHED_ROUNDS = 4


@dataclass(frozen=True)
class Disjoint:
    """Every unit has one holder (independent subnet training), except for an optional core that all workers hold.

    Each round a fraction ``reshuffle`` of an axis's dealt units, drawn at random, is dealt again. A unit may be dealt
    to the worker it was with, so for n equal workers the expected fraction that changes workers is
    ``reshuffle * (1 - 1/n)``. With 1.0 all units are dealt again each round, as in IST; with 0.0 none ever. The number
    of units of a worker is the same in all rounds.

    Args:
        num_workers: the number of workers n.
        seed: of the dealing.
        reshuffle: the fraction of units dealt again each round, 0 to 1.
        capacities: a positive weight per worker; units are dealt in proportion. None: equal.
        core: the fraction of each axis (its first units) that every worker holds and that is averaged, 0 to 1.

    Raises:
        ValueError: a value out of range; or, when dealing, an axis with fewer units than workers.

    Example:
        >>> from skerry.plan import Axis
        >>> Disjoint(3).assign((Axis("hidden", 6),), round=0).held.sum(1)  # units per worker
        tensor([2, 2, 2])

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, VLDB 2022, arXiv 1910.02120, section 3.
    """

    num_workers: int
    seed: int = 0
    reshuffle: float = 1.0
    capacities: tuple[float, ...] | None = None
    core: float = 0.0
    covers: ClassVar[bool] = True
    # axis -> round -> owners, of the last few rounds asked for: later rounds are derived from there, not from round 0.
    _known: dict[Axis, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_workers(self.num_workers)
        for name, value in (("reshuffle", self.reshuffle), ("core", self.core)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value}: expected a fraction from 0 to 1")
        if self.capacities is not None:
            if len(self.capacities) != self.num_workers:
                raise ValueError(
                    f"capacities: {len(self.capacities)} values, expected one per worker ({self.num_workers})"
                )
            if not all(0 < c < float("inf") for c in self.capacities):
                raise ValueError(f"capacities={self.capacities}: expected positive numbers")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal the units of ``axes`` for ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            num_core = int(self.core * axis.num_units + 0.5)
            held[:, axis.start : axis.start + num_core] = True
            owners = self._owners(axis, axis.num_units - num_core, round)
            held[owners, torch.arange(axis.start + num_core, axis.start + axis.num_units)] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for a dealt unit, 1 for a unit of the core."""
        return self.assign(axes, round).share()

    def _owners(self, axis: Axis, num_dealt: int, round: int) -> Tensor:
        """Return the holder of each dealt unit of ``axis`` in ``round``, (num_dealt,) int64."""
        if self.reshuffle == 1.0:
            return self._deal(axis, num_dealt, round)
        known = self._known.setdefault(axis, {})
        at = max((r for r in known if r <= round), default=0)
        owners = known[at] if at in known else self._deal(axis, num_dealt, 0)
        for r in range(at + 1, round + 1):
            owners = self._deal_again(axis, owners, r)
        known[round] = owners
        while len(known) > _MAX_CACHED_ROUNDS:
            del known[next(iter(known))]
        return owners

    def _deal(self, axis: Axis, num_dealt: int, round: int) -> Tensor:
        need_one = num_dealt == axis.num_units  # a worker that has the core does not need a unit of its own
        sizes = _sizes(num_dealt, self.capacities or (1.0,) * self.num_workers, int(need_one), axis)
        owners = torch.arange(self.num_workers).repeat_interleave(torch.tensor(sizes))
        return owners[torch.randperm(num_dealt, generator=generator(self.seed, "deal", axis.name, round))]

    def _deal_again(self, axis: Axis, owners: Tensor, round: int) -> Tensor:
        rng = generator(self.seed, "deal again", axis.name, round)
        # Pairs of units, rounded at random, so that the mean is exact even if it is less than a pair per round.
        pairs = self.reshuffle * len(owners) / 2 + float(torch.rand((), generator=rng, dtype=torch.float64))
        pot = torch.randperm(len(owners), generator=rng)[: 2 * int(pairs)]
        again = owners.clone()
        again[pot] = owners[pot.roll(1)]  # each takes the place of another one that was drawn
        return again


def _sizes(num_dealt: int, capacities: Sequence[float], minimum: int, axis: Axis) -> list[int]:
    """Return units per worker, in proportion to ``capacities`` by largest remainder, at least ``minimum`` each."""
    if num_dealt < minimum * len(capacities):
        raise too_few_units(axis, len(capacities))
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
