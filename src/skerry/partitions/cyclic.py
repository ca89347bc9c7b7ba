"""Cyclic dealing: units go from worker to worker, all together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, num_units
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Cyclic:
    """In round t unit u of each axis is with worker (u + t * step) mod n.

    Args:
        num_workers: the number of workers n.
        step: by how many workers units move on in a round; 0: they stay.

    Raises:
        ValueError: no workers, or a negative step.
    """

    num_workers: int
    step: int = 1
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)
        if self.step < 0:
            raise ValueError(f"step={self.step}: expected 0 or more workers a round")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        held = torch.zeros(self.num_workers, num_units(axes), dtype=torch.bool)
        for axis in axes:
            units = torch.arange(axis.num_units)
            held[(units + round * self.step) % self.num_workers, axis.start + units] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for every unit."""
        return self.assign(axes, round).share()
