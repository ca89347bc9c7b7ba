"""Who holds which units in a round (``Assignment``), and the rule that says so for every round (``Partition``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from skerry.plan.dims import Axis
from skerry.whole_number import check_whole_number


@dataclass(frozen=True)
class Assignment:
    """Who holds what in one round.

    Attributes:
        held: (num_workers, num_units) bool, over the global unit ids.

    Example:
        >>> Assignment(torch.tensor([[True, True, False], [True, False, True]])).units(1)
        tensor([0, 2])
    """

    held: Tensor

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return self.held.shape[0]

    def units(self, worker: int) -> Tensor:
        """Return the sorted global ids, int64, of the units that ``worker`` holds."""
        return self.held[worker].nonzero().flatten()

    def share(self) -> Tensor:
        """Return for each unit the fraction of workers that hold it, (num_units,) float64."""
        return self.held.double().mean(0)


class Partition(Protocol):
    """A rule that assigns units to workers, round by round.

    It is a pure function of its settings and the round: every process derives the same assignment by itself, and
    nothing about it is sent.
    """

    @property
    def num_workers(self) -> int:
        """The number of workers that units are dealt to."""
        ...

    @property
    def covers(self) -> bool:
        """Whether every unit has a holder in every round."""
        ...

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``, from 0; rounds may be asked for in any order."""
        ...

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return for each unit the probability that a subnet has it, (num_units,) float64.

        The mean is over workers, and over rounds like ``round``. In the full model, the weights that read a unit are
        scaled by it (``merge/calibrate.py``).
        """
        ...


def none_held(num_workers: int, axes: Sequence[Axis]) -> Tensor:
    """Return (num_workers, num_units) bool, all False."""
    return torch.zeros(num_workers, sum(axis.num_units for axis in axes), dtype=torch.bool)


def per_unit(axes: Sequence[Axis], values: Sequence[float]) -> Tensor:
    """Return a value per axis as one per unit, (num_units,) float64."""
    sizes = torch.tensor([axis.num_units for axis in axes], dtype=torch.int64)
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(sizes)


def check_workers(num_workers: int) -> None:
    """Raise ValueError unless there is a worker."""
    check_whole_number("num_workers", num_workers, 1)


def too_few_units(axis: Axis, num_workers: int, remedy: str = "leave the axis whole (ist)") -> ValueError:
    """Return the error of an axis that has fewer units than there are workers."""
    return ValueError(
        f"axis '{axis.name}': {axis.num_units} units for {num_workers} workers, expected at least one per worker; "
        f"use fewer workers or {remedy}"
    )
