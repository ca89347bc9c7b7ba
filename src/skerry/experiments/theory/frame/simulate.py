"""Rounds of subnet training on a small full-batch problem, with the functions that train real models.

Subnets are cut by ``extract``, trained by ``local_steps``, merged by ``aggregate_`` and evaluated as one network by
``scaled``, so the simulations test these. The loss is (1/2) ||y - f(x)||^2, as in the theorems, and every worker has
all data.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from skerry.merge.aggregate import Piece, aggregate_
from skerry.merge.calibrate import scaled
from skerry.model.tensors import named_tensors
from skerry.partitions.assignment import Assignment, Partition
from skerry.partitions.share import Share
from skerry.plan.table import Plan
from skerry.subnet.extract import extract
from skerry.training.steps.rates import scaled_rates
from skerry.training.worker import Worker, local_steps

Aggregate = Callable[[Mapping[str, Tensor], Plan, Assignment, Sequence[Piece | None]], None]
"""Merges pieces into the full tensors, in place."""

ROUNDING = 1e-20
"""Fraction of the first error. Below it, the ratio of two errors is rounding."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A network with its plan, inputs and targets [n]."""

    model: nn.Module
    plan: Plan
    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """The course of a run.

    Attributes:
        outputs: u_k [rounds + 1, n] of the scaled full network, before the first round and after each one.
        errors: ||y - u_k||^2 [rounds + 1].
        worst_local: the largest factor by which a local step changed ||y - f_l||^2 of a subnet.
    """

    outputs: Tensor
    errors: Tensor
    worst_local: float

    def floor(self) -> float:
        """Return the mean error over the last third of the rounds."""
        return float(self.errors[-(len(self.errors) // 3) :].mean())


def run(
    problem: Problem,
    partition: Partition,
    *,
    step: float,
    local: int,
    num_rounds: int,
    share: Tensor | None = None,
    aggregate: Aggregate = aggregate_,
) -> Trace:
    """Train ``problem.model``, in place, for ``num_rounds`` rounds of ``local`` gradient steps of size ``step``.

    Args:
        share: [units], scale of each unit's output in the full network; default: the probability that a subnet has the
            unit, given by the partition, as in real training.
    """
    share = partition.share(problem.plan.axes, 0) if share is None else share
    found, worst = [outputs(problem, share)], 0.0
    first = float((problem.y - found[0]).square().sum())
    for round in range(num_rounds):
        assignment = partition.assign(problem.plan.axes, round)
        pieces: list[Piece] = []
        for worker in range(assignment.num_workers):
            subnet, losses = trained(problem, assignment.units(worker), step=step, local=local)
            pieces.append(named_tensors(subnet))
            worst = max(worst, *(b / a for a, b in pairwise(losses) if a > ROUNDING * first), 0.0)
        aggregate(named_tensors(problem.model), problem.plan, assignment, pieces)
        found.append(outputs(problem, share))
    u = torch.stack(found)
    return Trace(u, (problem.y - u).square().sum(1), worst)


def trained(problem: Problem, units: Tensor, *, step: float, local: int) -> tuple[nn.Module, list[float]]:
    """Return the subnet of ``units`` after ``local`` gradient steps, and its ||y - f||^2 before and after each."""
    subnet = extract(problem.model, problem.plan, units)
    losses: list[float] = []

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        loss = 0.5 * (out - y).square().sum()
        losses.append(2 * loss.item())
        return loss

    optimizer = torch.optim.SGD([p for p in subnet.parameters() if p.requires_grad], lr=step)
    local_steps(
        Worker(subnet, optimizer, scaled_rates(optimizer, [1.0] * local)), loss_fn, [(problem.x, problem.y)] * local
    )
    with torch.no_grad():
        loss_fn(subnet(problem.x), problem.y)
    return subnet, losses


def outputs(problem: Problem, share: Tensor) -> Tensor:
    """Return u [n], the outputs of the full network with the output of unit r scaled by ``share[r]``."""
    model = copy.deepcopy(problem.model).requires_grad_(True)  # frozen second layers are scaled in the theorems, too
    with torch.no_grad():
        result: Tensor = scaled(model, problem.plan, Share.independent(share))(problem.x)
    return result


def error(problem: Problem, share: Tensor) -> float:
    """Return ||y - u||^2."""
    return float((problem.y - outputs(problem, share)).square().sum())


def kernel(model: nn.Module, x: Tensor, parameters: Sequence[nn.Parameter] = ()) -> Tensor:
    """Return H [n, n], inner products of the outputs' gradients in ``parameters`` (default: all trained ones)."""
    wanted = list(parameters) or [p for p in model.parameters() if p.requires_grad]
    rows = []
    for out in model(x):
        gradients = torch.autograd.grad(out, wanted, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def extremes(kernel: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a symmetric matrix."""
    values = torch.linalg.eigvalsh(kernel)
    return float(values[0]), float(values[-1])
