"""What a step costs and whether a plan holds, found out once for each kind of net: half the time of a short training.

``test_cost.py`` is about measuring itself, and ``test_verify.py`` about verifying.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, nn

from skerry.model.inputs import Inputs, stored, tensors_of
from skerry.model.tensors import named_tensors
from skerry.plan.table import Plan
from skerry.training import check, cost
from skerry.training.steps.optimizer import optimizer_of
from skerry.training.worker import LossFn, OptimizerFn


@contextmanager
def remembered() -> Iterator[None]:
    """Find out only what differs from all before in net, loss, batch, optimizer, plan or subnets."""
    costs: dict[Hashable, cost.StepCost] = {}
    verified: set[Hashable] = set()
    measure: Callable[..., cost.StepCost] = cost.step_cost
    verify: Callable[..., None] = check.verify

    def step_cost(
        subnet: nn.Module, loss_fn: LossFn, batch: tuple[Inputs, Any], optimizer: OptimizerFn
    ) -> cost.StepCost:
        kind = (_net(subnet), loss_fn, *map(_kind, tensors_of(batch)), repr(optimizer_of(optimizer, subnet)))
        if kind not in costs:
            costs[kind] = measure(subnet, loss_fn, batch, optimizer)
        return costs[kind]

    def verify_once(model: nn.Module, plan: Plan, inputs: Inputs, *, pieces: Sequence[Tensor]) -> None:
        """Values that are not finite are another kind: a message is about them."""
        finite = [bool(part.isfinite().all()) for t in tensors_of(inputs) for part in stored(t)]
        kinds = (*map(_kind, tensors_of(inputs)), *finite, *(tuple(p.tolist()) for p in pieces))
        kind = (_net(model), model.training, plan.digest(), kinds)
        if kind not in verified:
            verify(model, plan, inputs, pieces=pieces)
            verified.add(kind)

    with mock.patch.object(cost, "step_cost", step_cost), mock.patch.object(check, "verify", verify_once):
        yield


def by_size(subnet: nn.Module, *others: object) -> cost.StepCost:
    """Costs in place of those that are measured: they depend on the size of a subnet, and take no time."""
    return cost.StepCost(*[sum(parameter.numel() for parameter in subnet.parameters())] * 6)


def _net(net: nn.Module) -> Hashable:
    return (
        tuple((name, type(module)) for name, module in net.named_modules(remove_duplicate=False)),
        repr(net),
        tuple(str(getattr(vars(m).get("forward"), "args", ())[2:]) for m in net.modules()),
        tuple("forward" in vars(module) for module in net.modules()),
        tuple((name, t.requires_grad, *_kind(t)) for name, t in named_tensors(net).items()),
    )


def _kind(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.dtype, tensor.shape, tensor.device
