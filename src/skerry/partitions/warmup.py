"""Warm-up: full replicas for the first rounds, dealing after that."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from skerry.partitions.assignment import Assignment, Partition
from skerry.partitions.everything import Everything
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Warmup:
    """Every worker holds every unit for the first ``rounds`` rounds, then what ``then`` says for the round.

    During warm-up a worker needs the memory and operations of the full model.

    Args:
        rounds: of warm-up.
        then: the partition of later rounds; it sees their numbers unchanged.

    Raises:
        ValueError: ``rounds`` is negative.
    """

    rounds: int
    then: Partition

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"warm-up rounds={self.rounds}: expected 0 or more")

    @property
    def num_workers(self) -> int:
        """The number of workers of ``then``."""
        return self.then.num_workers

    @property
    def covers(self) -> bool:
        """Whether every unit has a holder in every round."""
        return self.then.covers

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        return self._at(round).assign(axes, round)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return ones during warm-up, then the shares of ``then``."""
        return self._at(round).share(axes, round)

    def _at(self, round: int) -> Partition:
        return Everything(self.num_workers) if round < self.rounds else self.then
