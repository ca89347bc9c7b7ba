"""Calibrate: from what subnets learned to a full model that can be used.

A subnet sums over its own units only, the full model over everybody's. So each weight that reads unit u is multiplied
by the chance s_u that a subnet had the unit (1/n for a unit dealt to one of n workers, 1 for one that all hold):

    W[:, u] <- s_u W[:, u],   so that   sum_u s_u W[:, u] h_u = E[sum over a random subnet's units of W[:, u] h_u],

the rule of dropout at test time. A block's branch, which subnets have or have not as a whole, is scaled likewise where
the plan names it. Without it the full model's outputs are up to n times too large: its accuracy may
survive, its loss does not. Then batch norm needs the statistics of the full model's own activations. They are measured
on a calibration batch and kept; the statistics of a test batch are never used (with those, as in the IST release, the
accuracy of a test set sorted by class falls to chance).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # also SyncBatchNorm

from skerry.model.tensors import named_tensors
from skerry.plan.table import Plan


@torch.no_grad()
def calibrate(
    model: nn.Module,
    plan: Plan,
    share: Tensor,
    forward: Callable[[nn.Module], object] | None = None,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> nn.Module:
    """Return a calibrated copy of ``model`` in evaluation mode.

    Args:
        model: the full model, as aggregated.
        plan: its plan.
        share: the scale s_u of each unit, by global id: ``partition.share(axes, round)``.
        forward: runs the module it is given once over the calibration inputs, all in one batch. Needed for models with
            batch norm; not called where nothing is dealt out, since running statistics are the model's own then.
        total: adds a tensor up over the processes that each run a part of the calibration inputs.

    Raises:
        ValueError: a batch norm keeps no running statistics.
    """
    check_batch_norm(model)
    calibrated = scaled(model, plan, share)
    if forward is not None and bool((share < 1).any()):
        estimate_batch_norm_(calibrated, forward, total)
    return calibrated


@torch.no_grad()
def scaled(model: nn.Module, plan: Plan, share: Tensor) -> nn.Module:
    """Return a copy of ``model`` in evaluation mode in which what reads unit u is multiplied by s_u."""
    copied = copy.deepcopy(model).eval()
    for name, tensor in named_tensors(copied).items():
        scale_(name, tensor, plan, share)
    return copied


@torch.no_grad()
def scale_(name: str, tensor: Tensor, plan: Plan, share: Tensor) -> None:
    """Multiply the full-size tensor ``name`` by the shares of the units that it reads."""
    for dim, dealt in enumerate(plan.dims.get(name, ())):
        if dealt is not None and dealt.role == "in":
            scale = dealt.look_up(share, 1.0)
            tensor.mul_(scale.to(tensor).view([-1 if d == dim else 1 for d in range(tensor.dim())]))
    if name in plan.scaled:
        tensor.mul_(share[plan.scaled[name]].to(tensor))


@torch.no_grad()
def estimate_batch_norm_(
    model: nn.Module,
    forward: Callable[[nn.Module], object],
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Set the running statistics of every batch norm of ``model`` to those of its input under ``forward``.

    Each layer's statistics are set just before it runs, so every later layer sees activations normalized as they will
    be at test time. ``total`` adds up (count, sum, sum of squares) over processes, so the result is that of one
    process with all inputs. A layer that runs several times gets the statistics of all its runs so far.
    """
    sums: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue

        def measure(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            assert isinstance(module, _BatchNorm)
            assert module.running_mean is not None
            assert module.running_var is not None
            x = inputs[0].transpose(0, 1).flatten(1).double()  # channels first, everything else behind
            count = torch.full((1, x.shape[0]), x.shape[1], dtype=x.dtype, device=x.device)
            sums[name] = sums.get(name, 0) + total(torch.cat([count, x.sum(1)[None], x.square().sum(1)[None]]))
            n, mean = sums[name][0], sums[name][1] / sums[name][0]
            variance = (sums[name][2] / n - mean.square()).clamp(min=0) * n / (n - 1).clamp(min=1)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)

        handles.append(module.register_forward_pre_hook(measure))
    if not handles:
        return
    was_training = model.training
    model.eval()
    try:
        forward(model)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


def check_batch_norm(model: nn.Module) -> None:
    """Raise ValueError if a batch norm of ``model`` keeps no running statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} ({type(module).__name__}): track_running_stats=False would use the statistics of the test "
                "batch, expected running statistics; build it with track_running_stats=True"
            )
