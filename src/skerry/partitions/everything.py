"""TODO."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, num_units
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Everything:
    """Every worker holds every unit: full replicas, as in local SGD."""

    num_workers: int
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return the assignment in which everybody holds everything."""
        return Assignment(torch.ones(self.num_workers, num_units(axes), dtype=torch.bool))

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return ones."""
        return self.assign(axes, round).share()
