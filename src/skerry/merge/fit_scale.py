"""Fit the scale: one factor per tensor that reads dealt units, where the expected scale is not the best one.

Calibration makes a full model sum what a subnet sums *on average* (``calibrate.py``). Behind a softmax, a norm or a
product the mean of the sums does not give the mean of the outputs. These few factors, fitted to training samples, make
up for much of it. Nothing is sent and no weight is trained, but one process must hold the full model.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from skerry.merge.calibrate import weight_norms
from skerry.model.inputs import Inputs, call, to
from skerry.model.tensors import copied
from skerry.plan.table import Plan

RATE = 0.1
"""Adam's learning rate, of the factors' logarithms."""


def fit_scale(
    model: nn.Module,
    plan: Plan,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[tuple[Inputs, Tensor]],
    *,
    steps: int = 40,
) -> nn.Module:
    """Return a copy of ``model`` in which each tensor that reads dealt units is multiplied by a fitted factor.

        min over c of the mean loss on ``batches`` of the model with exp(c_k) W_k for each such tensor W_k,

    by Adam from c = 0. The best c seen is taken, so the loss on ``batches`` never becomes higher.

    Args:
        model: the calibrated full model, as ``train`` returns it; it is not changed.
        plan: its plan.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        batches: training samples, (inputs, labels); a few hundred samples are enough for a few factors.
        steps: of Adam, each over all batches; a step costs what training the full model on them would.

    Returns:
        The copy, in evaluation mode. With nothing dealt out it computes the same as ``model``.
        Frozen parameters keep their values.

    Raises:
        ValueError: there are no batches, or the loss is not finite.

    Example:
        >>> from skerry.plan import In, Out
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
        >>> plan = Plan.from_rules(net, {"0": Out("hidden"), "2": In("hidden")})
        >>> x = torch.randn(64, 4)
        >>> y = 3 * net(x).detach()
        >>> fitted = fit_scale(net, plan, nn.functional.mse_loss, [(x, y)])
        >>> bool((fitted[2].weight / net[2].weight > 2).all())
        True
    """
    if not batches:
        raise ValueError("batches: got none, expected training samples to fit the scale to")
    fitted = copied(model).eval()
    given = dict(fitted.named_parameters())
    trained = {n for n, parameter in given.items() if parameter.requires_grad}
    norm_of = {v: g for g, v in weight_norms(fitted).items()}  # a factor of v alone would change nothing
    reads = [norm_of.get(n, n) for n, row in plan.dims.items() if any(dim and dim.role == "in" for dim in row)]
    reads = [name for name in reads if name in trained]
    if not reads:
        return fitted
    logs = torch.zeros(len(reads), requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=RATE)
    running, best, best_logs = _Running(fitted), float("inf"), logs.detach().clone()
    for _ in range(steps + 1):  # the last one only measures
        optimizer.zero_grad()
        total = _backward(running, {n: given[n] for n in reads}, logs, loss_fn, batches)
        if total < best:
            best, best_logs = total, logs.detach().clone()
        optimizer.step()
    if best == float("inf"):
        raise ValueError("fit_scale: the loss is not finite on these batches, expected a model and labels that fit")
    with torch.no_grad():
        for name, factor in zip(reads, best_logs.exp(), strict=True):
            given[name].mul_(factor.to(given[name]))
    return fitted


def _backward(
    running: nn.Module,
    reads: dict[str, nn.Parameter],
    logs: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[tuple[Inputs, Tensor]],
) -> float:
    """Add the gradient of the mean loss to that of ``logs``; return the mean loss."""
    num, total = sum(len(labels) for _, labels in batches), 0.0
    device = next(iter(reads.values())).device
    for batch in batches:
        inputs, labels = to(batch, device)
        factors = logs.exp()
        scaled = {f"inner.{n}": p.detach() * factors[k].to(p) for k, (n, p) in enumerate(reads.items())}
        loss = loss_fn(functional_call(running, scaled, (inputs,)), labels) * (len(labels) / num)
        torch.autograd.backward(loss, inputs=[logs])
        total += float(loss.detach())
    return total


class _Running(nn.Module):
    """Runs a model on inputs of any form as a module of one argument."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Inputs) -> Tensor:
        found: Tensor = call(self.inner, inputs)
        return found
