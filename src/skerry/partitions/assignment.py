"""TODO."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from skerry.plan.dims import Axis


@dataclass(frozen=True)
class Assignment:
    """Who holds what in one round: ``held[worker, unit]``, bool, over the global unit ids."""

    held: Tensor

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return self.held.shape[0]

    def units(self, worker: int) -> Tensor:
        """The sorted global ids, int64, of the units that ``worker`` holds."""
        return self.held[worker].nonzero().flatten()

    def share(self) -> Tensor:
        """For each unit the fraction of workers that hold it, float64: the chance that a subnet has the unit."""
        return self.held.double().mean(0)


class Partition(Protocol):
    """A rule that assigns units to workers, round by round."""

    @property
    def num_workers(self) -> int:
        """The number of workers it deals to."""
        ...

    @property
    def covers(self) -> bool:
        """Whether every unit has a holder in every round."""
        ...

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``, counted from 0; it is asked for rounds to come, too."""
        ...

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return for each unit the chance that a subnet has it, over workers and over rounds like ``round``, float64.

        What reads the unit is scaled by it in the full model (``calibrate.py``).
        """
        ...


def num_units(axes: Sequence[Axis]) -> int:
    return sum(axis.num_units for axis in axes)


def check_workers(num_workers: int) -> None:
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: expected at least 1")


def too_few_units(axis: Axis, num_workers: int) -> ValueError:
    return ValueError(
        f"axis '{axis.name}': {axis.num_units} units for {num_workers} workers, expected at least one a worker; "
        "use fewer workers or leave the axis whole"
    )
