"""What ``train`` chooses where it is not told: plan, algorithm, optimizer and number of rounds, and how it says so."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from skerry.algorithm import Algorithm
from skerry.algorithms.narrow import narrow
from skerry.algorithms.relay import relay
from skerry.discovery.discover import discover
from skerry.model.device import chosen_device
from skerry.model.inputs import Inputs, to
from skerry.model.tensors import skeleton
from skerry.plan.table import Plan
from skerry.trained import Given

WORKERS = 4
"""Workers in one process, where neither the data nor the algorithm says how many there are."""
PASSES = 20
"""Passes over the data."""
RATE = 1e-3
"""Learning rate of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a training runs with, and what of it was chosen, in words."""

    plan: Plan
    algorithm: Algorithm
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    num_rounds: int
    in_words: tuple[str, ...]

    def __str__(self) -> str:
        chosen, each = "; ".join(self.in_words), self.algorithm.local_steps
        other_net = not isinstance(self.algorithm.trains, Given)
        return (
            f"skerry.train chose {chosen}. That is {self.num_rounds * each} steps per worker, local_steps={each} a "
            f"round{'; the trained net is result.model, and your model stays as it is' if other_net else ''}. Give it "
            "these arguments to choose otherwise (docs/data.md)."
        )


def choose_missing(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    num_workers: int,
    steps_per_pass: int | None,
    plan: Plan | None,
    algorithm: Algorithm | None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None,
    num_rounds: int | None,
) -> Choice:
    """Return the given arguments of ``train``, and in the place of those that are None what suits the model.

    Args:
        model: the full model; it may be on meta.
        example_inputs: of a few samples.
        num_workers: of the data.
        steps_per_pass: batches of a worker in one pass over its data; None if that is not known.
        plan, algorithm, optimizer, num_rounds: as in ``train``, or None.

    Raises:
        ValueError: the model cannot be traced, or ``num_rounds`` is missing and the data has no length.
    """
    words = []
    if plan is None:
        plan = discover(model, to(example_inputs, chosen_device(None, model)))
        num = f"{len(plan.axes)} {'axis' if len(plan.axes) == 1 else 'axes'}"
        axes = f"{plan.num_units} units in {num}" if plan.axes else "nothing can be dealt out"
        words.append(f"plan=skerry.discover(model, inputs): {axes} (print it for the reasons)")
    if algorithm is None:
        algorithm, why = _method(model, plan, num_workers)
        words.append(f"algorithm=skerry.{algorithm.name}(workers={num_workers}, optimizer_state='travel'){why}")
    if optimizer is None:
        optimizer = _adamw
        words.append(f"optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr={RATE})")
    if num_rounds is None:
        if steps_per_pass is None:
            raise ValueError("num_rounds: not given, and the data has no length to choose it by; give num_rounds=")
        num_rounds = max(num_workers, math.ceil(PASSES * steps_per_pass / algorithm.local_steps))
        passes = num_rounds * algorithm.local_steps / steps_per_pass
        words.append(f"num_rounds={num_rounds}: {passes:.3g} passes over each worker's data")
    return Choice(plan=plan, algorithm=algorithm, optimizer=optimizer, num_rounds=num_rounds, in_words=tuple(words))


def _method(model: nn.Module, plan: Plan, num_workers: int) -> tuple[Algorithm, str]:
    """Return a relay where the plan allows it, else a narrow net, and why not a relay."""
    settings: dict[str, Any] = {"optimizer_state": "travel"}
    method = relay(num_workers, **settings)
    why = "nothing can be dealt out"
    try:
        if plan.axes:
            method.trains.net(skeleton(model), plan, 0)
            return method, ""
    except ValueError as error:
        why = str(error).partition("; ")[0].partition(", so subnets")[0]
    part = f"a new net with 1/{num_workers} of each axis" if plan.axes else "the whole model"
    return narrow(num_workers, **settings), f": {part} on every worker, since no relay is possible ({why})"


def _adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=RATE)
