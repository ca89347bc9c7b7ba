"""Fractional dealing: each worker holds a fraction of every axis, drawn at random, as a rolling window, or nested.

Methods of federated learning deal like this, with different fractions for different workers. A unit may have several
holders, which are averaged, or none; an owner rank stores unassigned units until they are dealt again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, none_held, per_unit
from skerry.plan.dims import Axis
from skerry.randomness import generator


@dataclass(frozen=True)
class Fractional:
    """What the partitions of this file have in common: a fraction of each axis per worker."""

    fractions: tuple[float, ...]
    covers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.fractions or not all(0.0 < fraction <= 1.0 for fraction in self.fractions):
            raise ValueError(f"fractions={self.fractions}: expected one number per worker, above 0 and at most 1")

    @property
    def num_workers(self) -> int:
        """The number of workers, one per fraction."""
        return len(self.fractions)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            for worker, num in enumerate(self._sizes(axis)):
                held[worker, axis.start + self._units(axis, num, worker, round)] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return the mean fraction, in whole units: the probability over all rounds, not what is held in this one."""
        return per_unit(axes, [sum(self._sizes(axis)) / self.num_workers / axis.num_units for axis in axes])

    def _sizes(self, axis: Axis) -> list[int]:
        return [max(1, int(fraction * axis.num_units + 0.5)) for fraction in self.fractions]

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        """Return the ``num`` units that ``worker`` holds, counted from the first of the axis, int64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sampled(Fractional):
    """Each round every worker draws its own units at random.

    Args:
        fractions: for each worker the fraction of each axis that it holds, above 0 and at most 1.
        seed: of the drawing.

    Raises:
        ValueError: a fraction is out of range.

    References:
        Caldas, Konečný, McMahan, Talwalkar: Expanding the Reach of Federated Learning by Reducing Client Resource
        Requirements, 2018, arXiv 1812.07210, section 3.2 (federated dropout; each client has its own random subset).
    """

    seed: int = 0

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        rng = generator(self.seed, "sample", axis.name, worker, round)
        return torch.randperm(axis.num_units, generator=rng)[:num]


@dataclass(frozen=True)
class Rolling(Fractional):
    """Every worker holds a window of units, as wide as its fraction, that moves on each round.

    With N units of an axis, the window of round t is {(t * step + k) mod N : k < fraction * N}. Workers of the same
    fraction hold the same units.

    Args:
        fractions: for each worker the fraction of each axis that it holds, above 0 and at most 1.
        step: units that the window moves on each round.

    Raises:
        ValueError: a fraction or the step is out of range.

    References:
        Alam, Liu, Yan, Zhang: FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction,
        NeurIPS 2022, arXiv 2212.01548, section 3.2 (with step 1).
    """

    step: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 1:
            raise ValueError(f"step={self.step}: expected at least 1 unit per round")

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        return (round * self.step + torch.arange(num)) % axis.num_units


@dataclass(frozen=True)
class Nested(Fractional):
    """Worker w holds the first ``fractions[w]`` of each axis in every round.

    Units beyond the largest fraction are never trained.

    Args:
        fractions: for each worker the fraction of each axis that it holds, above 0 and at most 1.

    Raises:
        ValueError: a fraction is out of range.

    References:
        Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
        Clients, ICLR 2021, arXiv 2010.01264, section 3.
    """

    def _units(self, axis: Axis, num: int, worker: int, round: int) -> Tensor:
        return torch.arange(num)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1 for units that some worker holds, 0 for the others.

        So the full model is the net of the worker with most units, which needs no scale.
        """
        return self.assign(axes, round).held.any(0).double()
