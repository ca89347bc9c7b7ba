"""Cyclic dealing: each set of units goes from worker to worker and is never mixed with another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Cyclic:
    """In round t unit u of each axis is at place (u + t) mod p, or u mod p in every round. Worker w holds place w.

    Args:
        num_workers: the number of workers n.
        moves: whether units go to the next place after each round.
        num_places: p, at least n; units at the places that have no worker rest. None: n.

    Raises:
        ValueError: no workers, or fewer places.
    """

    num_workers: int
    moves: bool = True
    num_places: int | None = None

    def __post_init__(self) -> None:
        check_workers(self.num_workers)
        if self.num_places is not None and self.num_places < self.num_workers:
            raise ValueError(f"num_places={self.num_places}: expected at least as many as workers ({self.num_workers})")

    @property
    def covers(self) -> bool:
        """Whether every unit is with a worker in every round; where places are given, workers may be fewer."""
        return self.num_places is None

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        num_places = self.num_places or self.num_workers
        held = none_held(num_places, axes)
        for axis in axes:
            units = torch.arange(axis.num_units)
            held[(units + round * self.moves) % num_places, axis.start + units] = True
        return Assignment(held[: self.num_workers])

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/p for every unit: a worker has those of one place."""
        return torch.full_like(self.assign(axes, round).share(), 1 / (self.num_places or self.num_workers))
