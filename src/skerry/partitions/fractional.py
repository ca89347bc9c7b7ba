"""Parts: each worker holds a part of every axis, drawn at random, rolling on, or nested; some units rest with nobody.

What several hold is averaged, and what nobody holds waits at its home (``exchange.py``). Methods of federated learning
deal so; workers may have parts of different sizes.
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
class _Parts:
    """What the partitions of this file have in common: a fraction of each axis for each worker."""

    fractions: tuple[float, ...]
    covers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.fractions or not all(0.0 < fraction <= 1.0 for fraction in self.fractions):
            raise ValueError(f"fractions={self.fractions}: expected a number for each worker, above 0 and at most 1")

    @property
    def num_workers(self) -> int:
        """One a fraction."""
        return len(self.fractions)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        held = torch.zeros(self.num_workers, sum(axis.num_units for axis in axes), dtype=torch.bool)
        for axis in axes:
            for worker, num in enumerate(self._sizes(axis)):
                held[worker, axis.start + self._units(axis, num, worker, round)] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return the mean fraction, of whole units: the chance over rounds, not what is held in this one."""
        parts = [sum(self._sizes(axis)) / self.num_workers / axis.num_units for axis in axes]
        numbers = torch.tensor([axis.num_units for axis in axes], dtype=torch.int64)
        return torch.tensor(parts, dtype=torch.float64).repeat_interleave(numbers)

    def _sizes(self, axis: Axis) -> list[int]:
        return [max(1, int(fraction * axis.num_units + 0.5)) for fraction in self.fractions]

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        """The ``num`` units of the axis, counted from its first, that ``worker`` holds."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sampled(_Parts):
    """Every worker draws its own units anew each round: a unit may have several holders, which are averaged, or none.

    Args:
        fractions: for each worker the fraction of each axis that it holds, above 0 to 1.
        seed: of the drawing.

    References:
        Caldas, Konečný, McMahan, Talwalkar: Expanding the Reach of Federated Learning by Reducing Client Resource
        Requirements, 2018, arXiv 1812.07210, section 3.2: federated dropout, each client with its own random subset.
    """

    seed: int = 0

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        rng = generator(self.seed, "sample", axis.name, worker, round)
        return torch.randperm(axis.num_units, generator=rng)[:num]


@dataclass(frozen=True)
class Rolling(_Parts):
    """In a round every worker holds the units of a window, as wide as its fraction, that rolls on round by round.

    The window of round t begins at unit t * step of the axis and goes on at its start where it comes to its end.
    Workers of the same fraction hold the same units.

    Args:
        fractions: for each worker the fraction of each axis that it holds, above 0 to 1.
        step: units that the window moves on each round.

    References:
        Alam, Liu, Yan, Zhang: FedRolex, NeurIPS 2022, arXiv 2212.01548, section 3.2 (there the step is 1).
    """

    step: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 1:
            raise ValueError(f"step={self.step}: expected at least 1 unit a round")

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        return (round * self.step + torch.arange(num)) % axis.num_units


@dataclass(frozen=True)
class Nested(_Parts):
    """Worker w always holds the first units of each axis, as many as its fraction says.

    Units beyond the largest fraction are never trained.

    Args:
        fractions: for each worker the fraction of each axis that it holds, above 0 to 1.

    References:
        Diao, Ding, Tarokh: HeteroFL, ICLR 2021, arXiv 2010.01264, section 3.
    """

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        return torch.arange(num)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1 for what some worker holds, 0 for the rest.

        The worker with the most units has trained exactly the net that this leaves, so nothing is scaled.
        """
        return self.assign(axes, round).held.any(0).double()
