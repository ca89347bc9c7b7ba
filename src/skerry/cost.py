"""What a plan costs a worker, predicted: bytes that have to change hands, operations, memory."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skerry.inputs import Inputs, call, to
from skerry.local import LossFn, OptimizerFn
from skerry.partition import Assignment
from skerry.plan import DealtDim, Plan


def due_bytes(plan: Plan, tensors: Mapping[str, Tensor], now: Assignment, then: Assignment) -> float:
    """Return the bytes a worker has to send, on average, at the boundary between two rounds.

    With H the workers that hold an element now and H' those that hold it next round:

    - H has several workers: a ring all-reduce among them, 2 (|H| - 1) sends.
    - An element of one dealt dim (or of a dealt and a core one) always has a holder: it moves straight to each new
      holder, |H' - H| sends, none if it stays.
    - An element of two dealt dims may rest with nobody, so it goes through a fixed home: one send if a holder lets go
      of it, one for each new holder.

    Args:
        plan: the plan.
        tensors: the full-size tensors that are exchanged, by name (only shape and element size are looked at).
        now: who holds what in the round that ends.
        then: who holds what in the next one.
    """
    # Tensors with the same row (a layer's norm weight, bias, mean and variance) cost alike: one sum for each row.
    rows: dict[tuple[int, ...], tuple[list[DealtDim], float]] = {}  # -> its dealt dims, bytes of one cell of them
    whole = {unit: DealtDim(torch.tensor([unit]), "out") for unit in plan.blocks.values()}
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue  # counters: everybody counts for itself
        dealt = [dim for dim in plan.row(name, tensor.shape) if dim is not None]
        block = plan.block_of(name)
        dealt += [whole[block]] if block is not None else []  # a tensor in a block: one more dim, with one index
        cell = tensor.numel() * tensor.element_size() / math.prod(len(dim.units) for dim in dealt)
        key = tuple(id(dim.units) for dim in dealt)
        rows[key] = (dealt, rows[key][1] + cell if key in rows else cell)
    kinds = {id(dim.units): dim for dealt, _ in rows.values() for dim in dealt}
    by_units = {key: _kinds(dim, now, then) for key, dim in kinds.items()}
    sends = sum(cell * _sends([by_units[key] for key in keys], now.num_workers) for keys, (_, cell) in rows.items())
    return sends / now.num_workers


def _sends(kinds: Sequence[tuple[Tensor, Tensor, Tensor]], num_workers: int) -> float:
    """Sends for a tensor whose dealt dims have these kinds of indices and whose other dims have one index."""
    held_now = held_then = torch.ones(num_workers, 1, dtype=torch.bool)
    free_dims, number = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    for a, b, count in kinds:
        held_now = (held_now[:, :, None] & a[:, None, :]).flatten(1)
        held_then = (held_then[:, :, None] & b[:, None, :]).flatten(1)
        free = (~(a & b).all(0)).long()  # not on every worker, now and then
        free_dims = (free_dims[:, None] + free[None, :]).flatten()
        number = (number[:, None] * count[None, :]).flatten()
    averaging = 2 * (held_now.sum(0) - 1).clamp(min=0)
    entering = (held_then & ~held_now).sum(0)
    leaving = ((held_now & ~held_then).any(0) & (free_dims > 1)).long()
    return float(((averaging + entering + leaving) * number).sum())


def _kinds(dim: DealtDim, now: Assignment, then: Assignment) -> tuple[Tensor, Tensor, Tensor]:
    """The different pairs (holders now, holders then) along a dim, bool (n, k) each, and how often each occurs."""
    everywhere = torch.ones(now.num_workers, 1, dtype=torch.bool)  # where id -1 looks
    both = torch.cat([torch.cat([a.held, everywhere], 1)[:, dim.units] for a in (now, then)]).numpy()
    codes = np.packbits(both, axis=0).T  # a row of bytes an index; as one number it sorts fast
    width = -(-codes.shape[1] // 8) * 8
    codes = np.ascontiguousarray(np.pad(codes, ((0, 0), (0, width - codes.shape[1]))))
    keys = codes.view(np.uint64 if width == 8 else f"V{width}")
    _, first, count = np.unique(keys, return_index=True, return_counts=True)
    kinds = torch.from_numpy(both[:, first])
    return kinds[: now.num_workers], kinds[now.num_workers :], torch.from_numpy(count)


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
