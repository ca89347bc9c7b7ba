"""Everything: all units on all workers, as in data parallelism and local SGD."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from skerry.partitions.assignment import Assignment, check_workers, none_held
from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Everything:
    """Every worker holds every unit: full replicas, as in local SGD.

    Raises:
        ValueError: no workers.
    """

    num_workers: int
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_workers(self.num_workers)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return the assignment in which every worker holds every unit."""
        return Assignment(~none_held(self.num_workers, axes))

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return ones."""
        return self.assign(axes, round).share()
