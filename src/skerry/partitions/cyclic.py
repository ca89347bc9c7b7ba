"""Cyclic dealing: each set of units goes from worker to worker and is never mixed with another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Cyclic:
    """In round t worker (u + t * step) mod n holds unit u of each axis.

    Args:
        num_workers: the number of workers n.
        step: how many workers further units go each round; 0: they stay.

    Raises:
        ValueError: no workers, or a negative step.
    """

    num_workers: int
    step: int = 1
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)
        if self.step < 0:
            raise ValueError(f"step={self.step}: expected 0 or more workers per round")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            units = torch.arange(axis.num_units)
            held[(units + round * self.step) % self.num_workers, axis.start + units] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for every unit."""
        return self.assign(axes, round).share()
