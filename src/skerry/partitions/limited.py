"""Limited dealing: each unit stays within a fixed group of workers, so nobody ever sees more than a part."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held, too_few_units
from skerry.plan.dims import Axis
from skerry.randomness import generator


@dataclass(frozen=True)
class Limited:
    """No worker ever holds more than the fraction ``max_exposure`` of the units of any axis.

    Workers are divided into fixed groups, as few as the bound allows, and so are the units of each axis. Within a group
    of m workers units are dealt out anew every m rounds, and go from worker to worker in between. So a worker sees all
    units of its group after m rounds, and no others ever. Weights between units of two groups are never trained: it
    suits nets that share nothing (``relay``). With groups of one worker nothing moves.

    Args:
        num_workers: the number of workers n.
        max_exposure: above 0 and at most 1; 1: one group.
        seed: of the dealing.

    Raises:
        ValueError: a value out of range; or, when dealing, a bound that cannot be kept.

    Example:
        >>> from skerry.partitions.exposures import exposure
        >>> exposure(Limited(4, 0.5), (Axis("nets", 4),), rounds=100).units
        0.5
    """

    num_workers: int
    max_exposure: float = 0.5
    seed: int = 0
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)
        if not 0 < self.max_exposure <= 1:
            raise ValueError(f"max_exposure={self.max_exposure}: expected a fraction above 0, at most 1")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            num_groups = self.num_groups(axis)
            units = torch.randperm(axis.num_units, generator=generator(self.seed, "group", axis.name))
            for group in range(num_groups):
                workers = torch.arange(group, self.num_workers, num_groups)
                own = units[_places(axis.num_units, self.num_workers, workers)]
                cycle, step = divmod(round, len(workers))
                order = torch.randperm(len(own), generator=generator(self.seed, "limited", axis.name, group, cycle))
                held[workers[(order + step) % len(workers)], axis.start + own] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for every unit: it has one holder, any of its group, and groups have units by their workers."""
        return self.assign(axes, round).share()

    def num_groups(self, axis: Axis) -> int:
        """Return the number of groups of an axis's units.

        Raises:
            ValueError: even units that never move exceed the bound, or there are fewer units than workers.
        """
        if axis.num_units < self.num_workers:
            raise too_few_units(axis, self.num_workers)
        for num in range(1, self.num_workers + 1):
            workers = torch.arange(0, self.num_workers, num)  # the first group has most
            if len(_places(axis.num_units, self.num_workers, workers)) <= self.max_exposure * axis.num_units:
                return num
        most = -(-axis.num_units // self.num_workers)
        raise ValueError(
            f"max_exposure={self.max_exposure}: axis '{axis.name}' has {axis.num_units} units for {self.num_workers} "
            f"workers, of which each holds {most}; expected at least "
            f"{Fraction(most, axis.num_units)} ({most} of {axis.num_units} units), or more workers"
        )


def _places(num_units: int, num_workers: int, workers: Tensor) -> Tensor:
    """Return the places that ``workers`` have if ``num_units`` are dealt round the table."""
    places = torch.arange(num_units)
    return places[torch.isin(places % num_workers, workers)]
