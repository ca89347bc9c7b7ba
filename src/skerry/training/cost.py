"""What a plan costs a worker, predicted: operations and memory. (Bytes that change hands: ``exchange.py``.)"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skerry.exchange.owners import owned_range, owner_dim
from skerry.model.inputs import Inputs, call, to
from skerry.model.tensors import fill_, named_tensors
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.training.worker import LossFn, OptimizerFn


@dataclass(frozen=True)
class StepCost:
    """What one local step costs a worker.

    Attributes:
        parameters: number of parameters it trains.
        flop: floating-point operations of forward and backward (matrix products and convolutions; a multiply-add is 2).
        weights: bytes of parameters and buffers.
        gradients: bytes of gradients.
        optimizer: bytes of optimizer state, that of an outer optimizer included.
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
        parameters = {n: t for n, t in named_tensors(subnet).items() if t.is_meta}
        if parameters:  # values do not matter, sizes do
            subnet = fill_(copy.deepcopy(subnet), {n: torch.zeros_like(t, device="cpu") for n, t in parameters.items()})
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


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a process of the distributed runtime needs, over those of an idle one.

    Attributes:
        step: its worker's training step: subnet, gradients, optimizer state, activations.
        previous: the copy of what its worker hands over, kept in case it must be refused.
        resting: what it is home to.
        buffers: of the exchange.
        entering: the next round's subnet, which is written while the last one is still read.
        largest: the largest tensor of the full model, which evaluation and export gather.
    """

    step: StepCost
    previous: int
    resting: int
    buffers: int
    entering: int
    largest: int

    @property
    def training(self) -> int:
        """While local steps run."""
        return self.step.memory + self.previous + self.resting + self.buffers

    @property
    def exchange(self) -> int:
        """At a round's end, when gradients and activations are gone."""
        return self.previous + self.entering + self.resting + self.buffers

    @property
    def evaluation(self) -> int:
        """While the full model passes by; its activations on the test batch come on top."""
        return self.entering + self.resting + self.buffers + 2 * self.largest

    @property
    def peak(self) -> int:
        """The most of the three."""
        return max(self.training, self.exchange, self.evaluation)


def rank_memory(
    plan: Plan,
    sizes: Mapping[str, Tensor],
    assignment: Assignment,
    worker: int,
    step: StepCost,
    *,
    buffer_bytes: int = 64 * 2**20,
) -> RankMemory:
    """Predict what the process of ``worker`` needs.

    Args:
        plan: what is dealt out.
        sizes: the full-size tensors that are kept, by name; with optimizer state where that travels.
        assignment: of a round.
        worker: which.
        step: what a local step costs (``step_cost``).
        buffer_bytes: the most that buffers of the exchange take.
    """
    shapes = Cuts(plan, assignment.units(worker)).shapes(sizes)
    narrow, resting = sum(shape.numel() * sizes[name].element_size() for name, shape in shapes.items()), 0
    for name, size in sizes.items():
        dim = owner_dim(plan, name, size.shape)
        if dim is not None:
            begin, end = owned_range(size.shape[dim], worker, assignment.num_workers)
            resting += size.nbytes // max(1, size.shape[dim]) * (end - begin)
    largest = max((size.nbytes for size in sizes.values()), default=0)
    return RankMemory(step, narrow, resting, buffer_bytes, narrow, largest)
