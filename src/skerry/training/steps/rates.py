"""The settings of an optimizer's groups in each local step: by a schedule, or as a torch scheduler sets them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from skerry.model.in_words import first_line
from skerry.training.steps.settings import SchedulerFn

Rates = Sequence[Sequence[Mapping[str, Any]]]
"""For each step and each group of an optimizer, the settings to change, such as ``{"lr": 0.1}``."""


def scaled_rates(optimizer: torch.optim.Optimizer, factors: Sequence[float]) -> Rates:
    """Return, for each factor, the learning rates of ``optimizer`` times the factor."""
    return [[{"lr": group["lr"] * factor} for group in optimizer.param_groups] for factor in factors]


class SchedulerRates:
    """What a torch scheduler sets in each step of a training.

    A worker's optimizer is made anew in each round. So the scheduler runs on an optimizer with the same groups and no
    weights, once over the whole training and only forward: every kind of scheduler has the values that it would have in
    a plain loop, to the bit, without a step being taken twice. A resumed training steps it to where it goes on.

    Args:
        make: makes the scheduler of an optimizer.
        num_steps: of a worker, over all rounds.
    """

    def __init__(self, make: SchedulerFn, num_steps: int) -> None:
        self._make, self._num_steps = make, num_steps
        self._clocks: dict[str, _Clock] = {}
        self._factors: dict[int, float] = {}

    def of_steps(self, optimizer: torch.optim.Optimizer, first: int, num: int) -> Rates:
        """Return the settings of the groups of ``optimizer``, which is new, in steps ``first ... first + num - 1``.

        Raises:
            ValueError: what the function makes is no scheduler of the optimizer that it gets, or has too few steps.
        """
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        key = repr(settings)  # workers with the same groups share a clock
        if key not in self._clocks or self._clocks[key].first > first:
            self._clocks[key] = _Clock(self._make, optimizer)
        try:
            rates = self._clocks[key].steps(first, num)
        except (ValueError, LookupError) as error:
            raise ValueError(
                f"lr_scheduler: {first_line(error)}; it is stepped between a worker's num_rounds * local_steps = "
                f"{self._num_steps} steps"
            ) from error
        base = rates[0][0].get("initial_lr", 0.0)
        self._factors = {first: float(rates[0][0]["lr"] / base) if base else math.nan}
        return rates

    def factor(self, step: int) -> float:
        """Return what the first group's rate was multiplied by in ``step``, the first of the last round; else NaN."""
        return self._factors.get(step, math.nan)


class _NoSteps(torch.optim.Optimizer):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


class _Clock:
    """A scheduler on an optimizer without weights, and the steps that it has shown last."""

    def __init__(self, make: SchedulerFn, like: torch.optim.Optimizer) -> None:
        groups = [{**group, "params": [torch.zeros(1, requires_grad=True)]} for group in like.param_groups]
        self._optimizer = _NoSteps(groups, dict(getattr(like, "defaults", {})))
        self._at_first = [dict(group) for group in self._optimizer.param_groups]
        self._changed: set[str] = {"lr"}
        try:
            self._scheduler = make(self._optimizer)
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler: {first_line(error)}; expected a function of an optimizer, such as "
                "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)"
            ) from error
        except ValueError as error:
            raise ValueError(f"lr_scheduler: {first_line(error)}") from error
        self._check(self._scheduler)
        self._now, self.first, self._shown = 0, 0, list[Sequence[Mapping[str, Any]]]()

    def steps(self, first: int, num: int) -> Rates:
        if (self.first, len(self._shown)) != (first, num):
            self.first, self._shown = first, [self._at(step) for step in range(first, first + num)]
        return self._shown

    def _at(self, step: int) -> Sequence[Mapping[str, Any]]:
        assert self._now <= step
        while self._now < step:
            self._optimizer.step()  # a scheduler warns if it is stepped first
            self._scheduler.step()
            self._now += 1
        groups = [*zip(self._optimizer.param_groups, self._at_first, strict=True)]
        self._changed |= {k for group, at_first in groups for k, v in group.items() if at_first.get(k) is not v}
        return [{k: _copied(v) for k, v in group.items() if k in self._changed} for group, _ in groups]

    def _check(self, scheduler: Any) -> None:
        name = type(scheduler).__name__
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                f"lr_scheduler: {name} needs a measure in each step; step it by hand in a loop of your own"
            )
        if not hasattr(scheduler, "step") or isinstance(scheduler, torch.optim.Optimizer):
            raise ValueError(f"lr_scheduler: the function returned {name}, expected a torch.optim.lr_scheduler")
        if getattr(scheduler, "optimizer", self._optimizer) is not self._optimizer:
            raise ValueError(
                f"lr_scheduler: the function returned {name} of another optimizer, expected one of the optimizer that "
                "it is given; each worker has its own"
            )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
