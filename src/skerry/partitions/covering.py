"""Covering: every unit on some worker, and at least so many units on every worker, as residual blocks need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment
from skerry.plan.dims import Axis
from skerry.randomness import generator


@dataclass(frozen=True)
class Covering:
    """Deal each axis out evenly; where that gives a worker less than ``min_units``, some units go to several workers.

    With m units and n workers each worker has max(min_units, m/n) of them, m/n rounded up for some and down for the
    rest. The units lie in a circle in random order and each worker takes the next ones, so the numbers of holders of
    any two units differ by at most one, and nobody has a unit twice. Everything is dealt anew each round.

    Args:
        num_workers: the number of workers n.
        min_units: the least of each axis on a worker; 1 is disjoint dealing.
        seed: of the dealing.

    Raises:
        ValueError: a value out of range, or, on dealing, an axis with fewer than ``min_units`` units or too few for a
            unit a worker.

    References:
        Dun, Wolfe, Jermaine, Kyrillidis: ResIST: Layer-Wise Decomposition of ResNets for Distributed Training, UAI
        2022, arXiv 2107.00961: the minimum depth, by blocks given to several workers.
    """

    num_workers: int
    min_units: int = 1
    seed: int = 0
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("num_workers", self.num_workers), ("min_units", self.min_units)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal the units of ``axes`` for ``round``."""
        held = torch.zeros(self.num_workers, sum(axis.num_units for axis in axes), dtype=torch.bool)
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
        """Return for each unit the chance that a subnet has it: the mean over dealings, the same for a whole axis."""
        parts = [sum(self._sizes(axis)) / (self.num_workers * axis.num_units) for axis in axes]
        numbers = torch.tensor([axis.num_units for axis in axes], dtype=torch.int64)
        return torch.tensor(parts, dtype=torch.float64).repeat_interleave(numbers)

    def _sizes(self, axis: Axis) -> list[int]:
        """How many units of ``axis`` each worker has, in every round."""
        if axis.num_units < self.min_units:
            raise ValueError(
                f"axis '{axis.name}': {axis.num_units} units, expected at least min_units={self.min_units}; lower it"
            )
        each, more = divmod(axis.num_units, self.num_workers)
        if max(each, self.min_units - 1) < 1:
            raise ValueError(
                f"axis '{axis.name}': {axis.num_units} units for {self.num_workers} workers, expected at least one a "
                "worker; use fewer workers or a higher min_units"
            )
        return [max(self.min_units, each + (worker < more)) for worker in range(self.num_workers)]
