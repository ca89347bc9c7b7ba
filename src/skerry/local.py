"""Local steps: ordinary PyTorch training of one subnet, between two exchanges."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skerry.inputs import Inputs, call

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(what the model returns, y)``: the mean over the batch, a scalar."""
OptimizerFn = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Data(Protocol):
    """Where workers get their batches; ``skerry.data.Shards`` is one."""

    @property
    def num_workers(self) -> int:
        """The number of workers it has data for."""
        ...

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterable[tuple[Inputs, Any]]:
        """Return the (x, y) of steps ``first_step ...`` of ``worker``: the same ones whenever it is asked."""
        ...

    def sample(self, worker: int, num: int) -> Inputs:
        """Return ``num`` (or all) inputs of ``worker``, to calibrate with."""
        ...


def local_steps(
    subnet: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[tuple[Inputs, Any]],
    optimizer: torch.optim.Optimizer,
    factors: Iterable[float],
    on_step: Callable[[int], None] | None = None,
) -> float:
    """Train ``subnet`` for one step a batch and return the mean loss; NaN or infinite as soon as one step's is.

    Args:
        subnet: the module to train; in place.
        loss_fn: ``loss_fn(call(subnet, x), y)`` is the scalar to minimize.
        batches: pairs (x, y); x is one argument of the subnet, a tuple of several, or a dict of named ones.
        optimizer: over the subnet's parameters.
        factors: for each step what the optimizer's learning rates are multiplied by.
        on_step: called after each step with the number of steps done.
    """
    subnet.train()
    rates = [group["lr"] for group in optimizer.param_groups]
    total, steps = 0.0, 0
    for (x, y), factor in zip(batches, factors, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        loss = loss_fn(call(subnet, x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
        steps += 1
        if not math.isfinite(total):
            break
        if on_step is not None:
            on_step(steps)
    return total / max(1, steps)
