"""A partition that gives every unit to several workers: none of Skerry's methods do, so it tests the averaging."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held, too_few_units
from skerry.plan.dims import Axis
from skerry.randomness import generator


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
        check_workers(self.num_workers)
        if not 1 <= self.copies <= self.num_workers:
            raise ValueError(f"copies={self.copies}: expected 1 to {self.num_workers}, the number of workers")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal the units of ``axes`` for ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            if axis.num_units < self.num_workers:
                raise too_few_units(axis, self.num_workers)
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
