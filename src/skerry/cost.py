"""What a plan costs a worker, predicted: operations and memory. (Bytes that change hands: ``exchange.py``.)"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skerry.inputs import Inputs, call, to
from skerry.local import LossFn, OptimizerFn


@dataclass(frozen=True)
class StepCost:
    """What one local step costs a worker.

    Attributes:
        parameters: number of parameters it trains.
        flop: floating-point operations of forward and backward (matrix products and convolutions; a multiply-add is 2).
        weights: bytes of parameters and buffers.
        gradients: bytes of gradients.
        optimizer: bytes of optimizer state.
        activations: bytes kept for the backward pass, parameters not counted.
    """

    parameters: int
    flop: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes a worker needs in all."""
        return self.weights + self.gradients + self.optimizer + self.activations


def step_cost(subnet: nn.Module, loss_fn: LossFn, batch: tuple[Inputs, Any], optimizer: OptimizerFn) -> StepCost:
    """Measure one training step of a copy of ``subnet``; no state changes.

    The copy is on the meta device, where nothing is computed. A model or loss that cannot run there (it looks at values
    or has tensors of its own) takes one real step of a real copy instead.
    """
    try:
        return _step_cost(subnet, loss_fn, batch, optimizer, torch.device("meta"))
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        with torch.random.fork_rng(devices=[]):
            return _step_cost(subnet, loss_fn, batch, optimizer, next(subnet.parameters()).device)


def _step_cost(
    subnet: nn.Module, loss_fn: LossFn, batch: tuple[Inputs, Any], optimizer: OptimizerFn, device: torch.device
) -> StepCost:
    copied = copy.deepcopy(subnet).to(device).train()
    parameters = list(copied.parameters())
    held_anyway = {t.untyped_storage()._cdata for t in [*parameters, *copied.buffers()]}
    saved: dict[int, Tensor] = {}

    def remember(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in held_anyway:
            saved[key] = tensor
        return tensor

    opt = optimizer(parameters)
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
            loss = loss_fn(call(copied, to(batch[0], device)), to(batch[1], device))
        activations = sum(t.untyped_storage().nbytes() for t in saved.values())
        loss.backward()  # type: ignore[no-untyped-call]
    opt.step()
    state = [v for s in opt.state.values() for v in s.values() if isinstance(v, Tensor)]
    return StepCost(
        parameters=sum(p.numel() for p in parameters),
        flop=counter.get_total_flops(),
        weights=_bytes([*parameters, *copied.buffers()]),
        gradients=_bytes(p for p in parameters if p.grad is not None),
        optimizer=_bytes(state),
        activations=activations,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
