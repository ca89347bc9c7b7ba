"""What a plan costs a worker, predicted: operations and memory. (Bytes of the exchange: ``skerry.exchange``.)"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from skerry.exchange.owners import owned_cut
from skerry.model.inputs import Inputs, call, map_tensors, stored, to
from skerry.model.tensors import copied, fill_, named_tensors, skeleton
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.randomness import own_random_state
from skerry.runtimes.elastic.pieces import num_bytes
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import cut_shape
from skerry.training.steps.optimizer import optimizer_of
from skerry.training.steps.prepared import autocast_device, prepared
from skerry.training.steps.settings import StepSettings
from skerry.training.worker import LossFn, OptimizerFn, micro_batches


@dataclass(frozen=True)
class StepCost:
    """What one local step costs a worker.

    Attributes:
        parameters: number of parameters it trains.
        flop: floating-point operations of forward and backward (matrix products and convolutions; a multiply-add is 2).
        weights: bytes of parameters and buffers.
        gradients: bytes of gradients.
        optimizer: bytes of optimizer state, including that of an outer optimizer and the start that FedProx keeps.
        activations: bytes stored for the backward pass, without parameters.
    """

    parameters: int
    flop: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes that a worker needs in total."""
        return self.weights + self.gradients + self.optimizer + self.activations


def step_cost(subnet: nn.Module, loss_fn: LossFn, batch: tuple[Inputs, Any], optimizer: OptimizerFn) -> StepCost:
    """Measure one training step of a copy of ``subnet``; the subnet and torch's random state do not change.

    The copy is on the meta device, where nothing is computed. If the model or the loss cannot run there (because it
    reads values, has tensors of its own or gets sparse ones), a real forward and backward of a real copy are measured
    instead, and the optimizer's step is still taken without values.

    Args:
        subnet: the narrow module; it may be on the meta device.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        batch: (inputs, labels) of the size that is trained with.
        optimizer: a function of the worker's subnet that returns the optimizer.
    """
    device = next((parameter.device for parameter in subnet.parameters()), torch.device("cpu"))
    with own_random_state(device=device):
        try:
            in_autocast = autocast_device(subnet)
            if in_autocast is None:
                return _step_cost(copied(subnet), loss_fn, batch, optimizer, torch.device("meta"))
            small, likes = skeleton(subnet), named_tensors(subnet)  # on meta autocast does nothing
            with FakeTensorMode(allow_non_fake_inputs=True):
                narrow = fill_(small, {n: torch.empty_like(t, device=in_autocast) for n, t in likes.items()})
                fake = map_tensors(lambda t: torch.empty_like(t, device=in_autocast), batch)
                return _step_cost(narrow, loss_fn, fake, optimizer, torch.device(in_autocast))
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            parameters = {n: t for n, t in named_tensors(subnet).items() if t.is_meta}
            if parameters:  # their values do not change the cost
                subnet = fill_(copied(subnet), {n: torch.zeros_like(t, device="cpu") for n, t in parameters.items()})
            return _step_cost(copied(subnet), loss_fn, batch, optimizer, next(subnet.parameters()).device)


def _step_cost(
    net: nn.Module, loss_fn: LossFn, batch: tuple[Inputs, Any], optimizer: OptimizerFn, device: torch.device
) -> StepCost:
    net = net.to(device).train()
    parameters = list(net.parameters())
    not_counted = {t.untyped_storage()._cdata for t in [*parameters, *net.buffers()] if t.layout == torch.strided}
    saved: dict[int, Tensor] = {}

    def remember(tensor: Tensor) -> Tensor:
        for part in stored(tensor):
            key = part.untyped_storage()._cdata
            if key not in not_counted:
                saved[key] = part
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
            loss = loss_fn(call(net, to(batch[0], device)), to(batch[1], device))
        activations = sum(t.untyped_storage().nbytes() for t in saved.values())
        loss.backward()  # type: ignore[no-untyped-call]
    return StepCost(
        parameters=sum(p.numel() for p in parameters),
        flop=counter.get_total_flops(),
        weights=_bytes([*parameters, *net.buffers()]),
        gradients=_bytes(p for p in parameters if p.grad is not None),
        optimizer=_optimizer_bytes(net, optimizer),
        activations=activations,
    )


def _optimizer_bytes(net: nn.Module, optimizer: OptimizerFn) -> int:
    """Return the bytes of an optimizer's state after a step on the gradients of ``net``.

    The step is taken on fake tensors, so that state and temporary values need no memory; for real if it reads values.
    """
    try:
        small, likes = skeleton(net), named_tensors(net)
        with FakeTensorMode():
            device = {n: "cpu" if t.is_meta else t.device for n, t in likes.items()}
            fill_(small, {n: torch.empty(t.shape, dtype=t.dtype, device=device[n]) for n, t in likes.items()})
            for real, parameter in zip(net.parameters(), small.parameters(), strict=True):
                parameter.grad = None if real.grad is None else torch.empty_like(parameter)
            return _bytes_after_step(optimizer_of(optimizer, small))
    except Exception:
        return _bytes_after_step(optimizer_of(optimizer, net))


def _bytes_after_step(opt: torch.optim.Optimizer) -> int:
    opt.step()
    return _bytes(v for s in opt.state.values() for v in s.values() if isinstance(v, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class StepCosts:
    """Costs of local steps, measured once per size of subnet.

    Args:
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        optimizer: a function of the worker's subnet that returns the optimizer.
        batch: returns a batch (inputs, labels).
        kept: how many more tensors a worker keeps for each parameter (``Algorithm.kept_tensors``).
        settings: how workers take their steps.
        device: where they do.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        optimizer: OptimizerFn,
        batch: Callable[[], tuple[Inputs, Any]],
        *,
        kept: int,
        settings: StepSettings,
        device: torch.device,
    ) -> None:
        self._loss_fn, self._optimizer, self._batch, self._kept = loss_fn, optimizer, batch, kept
        self._settings, self._device = replace(settings, compile=False), device
        self._known: dict[tuple[torch.Size, ...], StepCost] = {}

    def of(self, subnet: nn.Module) -> StepCost:
        """Return the cost of a local step of ``subnet``."""
        sizes = tuple(parameter.shape for parameter in subnet.parameters())
        if sizes not in self._known:
            batch, _ = next(micro_batches(self._batch(), self._settings.accumulate))
            with prepared(subnet, self._settings, self._device):
                found = step_cost(subnet, self._loss_fn, batch, self._optimizer)
            self._known[sizes] = replace(
                found,
                flop=found.flop * self._settings.accumulate,
                optimizer=found.optimizer + found.gradients * self._kept,
            )
        return self._known[sizes]


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a process of the distributed runtime needs beyond those of an idle one.

    Attributes:
        step: its worker's training step: subnet, gradients, optimizer state, activations.
        previous: the copy of what its worker hands over, kept in case the worker is refused.
        resting: the unassigned elements that this rank owns.
        buffers: of the exchange.
        entering: the next round's subnet, which is written while the last one is still read.
        largest: the largest tensor of the full model, which evaluation and export gather.
        copies: what it keeps in an elastic run until the next exchange is over: its own piece and its predecessor's.
    """

    step: StepCost
    previous: int
    resting: int
    buffers: int
    entering: int
    largest: int
    copies: int = 0

    @property
    def training(self) -> int:
        """Bytes during local steps."""
        return self.step.memory + self.previous + self.resting + self.buffers + self.copies

    @property
    def exchange(self) -> int:
        """Bytes at the end of a round, when gradients and activations are gone."""
        return self.previous + self.entering + self.resting + self.buffers + 2 * self.copies

    @property
    def evaluation(self) -> int:
        """Bytes during evaluation, without the full model's activations on a test batch."""
        return self.entering + self.resting + self.buffers + self.copies + 2 * self.largest

    @property
    def peak(self) -> int:
        """The largest of the three."""
        return max(self.training, self.exchange, self.evaluation)


def most_buffer_bytes(num_workers: int, busiest: float, largest: int) -> int:
    """Return a bound on the bytes of the buffers of a process: two each way with every other (``distributed/wire.py``).

    Args:
        num_workers: in all.
        busiest: bytes that a process sends or receives in an exchange, at most.
        largest: bytes of the full model's largest tensor, which is gathered for evaluation.
    """
    others = num_workers - 1
    return min(64 * 2**20, 4 * others * 2**22, int(4 * busiest) + 2 * largest + 2**12 * others)


def rank_memory(
    plan: Plan,
    sizes: Mapping[str, Tensor],
    assignment: Assignment,
    worker: int,
    step: StepCost,
    *,
    buffer_bytes: int = 64 * 2**20,
    elastic: bool = False,
) -> RankMemory:
    """Predict what the process of ``worker`` needs.

    Args:
        plan: what is dealt out.
        sizes: the full-size tensors by name, of any device; including optimizer state where it travels.
        assignment: of a round.
        worker: its number.
        step: what a local step costs (``step_cost``).
        buffer_bytes: the most bytes that buffers of the exchange take.
        elastic: whether processes come and go, so that each keeps copies.
    """
    shapes = Cuts(plan, assignment.units(worker)).shapes(sizes)
    narrow, resting = sum(shape.numel() * sizes[name].element_size() for name, shape in shapes.items()), 0
    for name, size in sizes.items():
        owned = owned_cut(plan, name, size.shape, worker, assignment.num_workers)
        resting += 0 if owned is None else cut_shape(size.shape, owned).numel() * size.element_size()
    largest = max((size.nbytes for size in sizes.values()), default=0)
    num = assignment.num_workers
    holders = {worker, (worker - 1) % num} if elastic else set()
    copies = sum(num_bytes(plan, sizes, assignment, each) for each in holders)
    return RankMemory(step, narrow, resting, buffer_bytes, narrow, largest, copies)
