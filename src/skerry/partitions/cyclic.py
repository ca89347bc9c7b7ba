"""Cyclic dealing: each set of units goes from worker to worker and is never mixed with another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Cyclic:
    """Unit u of each axis is in set u mod p. In round t worker w holds set (w - t) mod p, or one of its own in turn.

    Args:
        num_workers: the number of workers n.
        moves: whether sets go to the next worker after each round. Otherwise set k stays with worker k mod n.
        num_places: p, at least n; sets that no worker holds rest. None: n.

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
        num, num_sets = self.num_workers, self.num_places or self.num_workers
        held = none_held(num, axes)
        for worker in range(num):
            own = range(worker, num_sets, num)
            which = (worker - round) % num_sets if self.moves else own[round % len(own)]
            for axis in axes:
                held[worker, axis.start + torch.arange(which, axis.num_units, num_sets)] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/p for every unit: a worker has those of one place."""
        return torch.full_like(self.assign(axes, round).share(), 1 / (self.num_places or self.num_workers))
