"""Covering: every unit on some worker, and a minimum of units on every worker, as residual blocks need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held, per_unit, too_few_units
from skerry.plan.dims import Axis
from skerry.randomness import generator
from skerry.whole_number import check_whole_number


@dataclass(frozen=True)
class Covering:
    """Deal each axis out evenly; where that gives a worker less than ``min_units``, some units go to several workers.

    With m units and n workers each worker has max(min_units, m/n) of them, m/n rounded up for some and down for the
    rest. The units are put on a circle in random order and each worker takes the next ones, so the numbers of holders
    of any two units differ by at most one, and no worker has a unit twice. All units are dealt again each round.

    Args:
        num_workers: the number of workers n.
        min_units: the minimum of units of each axis per worker; with 1 every unit has one holder.
        seed: of the dealing.

    Raises:
        ValueError: a value out of range; or, when dealing, an axis with fewer than ``min_units`` units, or with fewer
            units than workers where ``min_units`` is 1.

    References:
        Dun, Wolfe, Jermaine, Kyrillidis: ResIST: Layer-Wise Decomposition of ResNets for Distributed Training, UAI
        2022, arXiv 2107.00961 (the minimum depth, by blocks that several workers have).
    """

    num_workers: int
    min_units: int = 1
    seed: int = 0
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)
        check_whole_number("min_units", self.min_units, 1)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal the units of ``axes`` for ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            sizes = self._sizes(axis)
            rng = generator(self.seed, "cover", axis.name, round)
            circle = axis.start + torch.randperm(axis.num_units, generator=rng)
            begin = 0
            for worker in torch.randperm(self.num_workers, generator=rng).tolist():
                places = torch.arange(begin, begin + sizes[worker]) % axis.num_units
                held[worker, circle[places]] = True
                begin += sizes[worker]
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return the mean over dealings of the fraction of workers that hold a unit, the same for all of an axis."""
        return per_unit(axes, [sum(self._sizes(axis)) / (self.num_workers * axis.num_units) for axis in axes])

    def _sizes(self, axis: Axis) -> list[int]:
        """Return how many units of ``axis`` each worker has, in every round."""
        if axis.num_units < self.min_units:
            raise ValueError(
                f"axis '{axis.name}': {axis.num_units} units, expected at least min_units={self.min_units}; lower it"
            )
        each, more = divmod(axis.num_units, self.num_workers)
        if each < 1 and self.min_units == 1:
            raise too_few_units(axis, self.num_workers, "a higher min_units")
        return [max(self.min_units, each + (worker < more)) for worker in range(self.num_workers)]
