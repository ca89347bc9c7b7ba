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
    """In round t worker (u + t) mod n holds unit u of each axis; or worker u mod n in every round.

    Args:
        num_workers: the number of workers n.
        moves: whether units go to the next worker after each round.

    Raises:
        ValueError: no workers.
    """

    num_workers: int
    moves: bool = True
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            units = torch.arange(axis.num_units)
            held[(units + round * self.moves) % self.num_workers, axis.start + units] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for every unit: it has one holder."""
        return self.assign(axes, round).share()
