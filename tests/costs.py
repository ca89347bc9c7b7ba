"""What a step costs, measured once for each kind of net: it takes most of the time of a training of a few rounds.

``test_cost.py`` is about measuring itself.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, nn

from skerry.model.inputs import Inputs, tensors_of
from skerry.model.tensors import named_tensors
from skerry.training import cost
from skerry.training.steps.optimizer import optimizer_of
from skerry.training.worker import LossFn, OptimizerFn


@contextmanager
def remembered() -> Iterator[None]:
    """Measure only what differs from all before in net, loss, batch or optimizer."""
    measure: Callable[..., cost.StepCost] = cost.step_cost
    known: dict[Hashable, cost.StepCost] = {}

    def step_cost(
        subnet: nn.Module, loss_fn: LossFn, batch: tuple[Inputs, Any], optimizer: OptimizerFn
    ) -> cost.StepCost:
        kind = (
            tuple((name, type(module)) for name, module in subnet.named_modules(remove_duplicate=False)),
            repr(subnet),
            tuple(str(getattr(vars(m).get("forward"), "args", ())[2:]) for m in subnet.modules()),
            tuple("forward" in vars(module) for module in subnet.modules()),
            tuple((name, t.requires_grad, *_kind(t)) for name, t in named_tensors(subnet).items()),
            loss_fn,
            tuple(_kind(t) for t in tensors_of(batch)),
            repr(optimizer_of(optimizer, subnet)),
        )
        if kind not in known:
            known[kind] = measure(subnet, loss_fn, batch, optimizer)
        return known[kind]

    with mock.patch.object(cost, "step_cost", step_cost):
        yield


def _kind(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.dtype, tensor.shape, tensor.device
