"""The random masks of the theorems, as partitions.

``Disjoint`` deals equal numbers of units; most theorems draw each unit independently, as these two do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment
from skerry.plan.dims import Axis
from skerry.randomness import generator


@dataclass(frozen=True)
class Bernoulli:
    """Each worker holds each unit with probability ``keep``, independently: dropout with several samples per round."""

    num_workers: int
    keep: float
    seed: int = 0
    covers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep={self.keep}: expected a probability above 0, at most 1")

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Draw the masks of ``round``."""
        num_units = sum(axis.num_units for axis in axes)
        rng = generator(self.seed, "bernoulli", round)
        drawn = torch.rand(self.num_workers, num_units, generator=rng, dtype=torch.float64)
        return Assignment(drawn < self.keep)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return ``keep`` for every unit: the probability, not the draw."""
        return torch.full((sum(axis.num_units for axis in axes),), self.keep, dtype=torch.float64)


@dataclass(frozen=True)
class Categorical:
    """Each unit goes to one worker, drawn uniformly and independently: ``Disjoint`` without equal numbers of units."""

    num_workers: int
    seed: int = 0
    covers: ClassVar[bool] = True

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Draw the holders of ``round``."""
        num_units = sum(axis.num_units for axis in axes)
        owners = torch.randint(self.num_workers, (num_units,), generator=generator(self.seed, "categorical", round))
        return Assignment(owners == torch.arange(self.num_workers)[:, None])

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n for every unit."""
        return self.assign(axes, round).share()
