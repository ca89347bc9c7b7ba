"""Calibrate: turn the aggregated weights into a full model that can be evaluated and exported.

A subnet sums over its own units only, the full model over all units. So each weight that reads unit u is multiplied by
the probability s_u that a subnet has the unit (1/n for a unit dealt to one of n workers, 1 for one that all hold):

    W[:, u] <- s_u W[:, u],   so that   sum_u s_u W[:, u] h_u = E[sum over a random subnet's units of W[:, u] h_u],

as dropout does at test time. A weight that reads u to make another dealt unit v is multiplied by the probability that a
subnet *with v* has u (``partitions/share.py``): it differs from s_u where u and v are of one axis, as in a residual
stream, or where workers have unequal capacities. The branch of a block is scaled in the same way where the plan names
it. Without the scale the full model's outputs are up to n times too large, which its accuracy may survive but its loss
does not.

A weight norm's g v / |v| does not change with a factor of v. A subnet's |v| is that of the columns it has, so g is
multiplied by sqrt(sum_u s_u^2 / sum_u s_u) over the columns u, which is sqrt(s) where all shares are s.

Then batch norm needs the statistics of the full model's own activations. They are measured on calibration inputs and
stored. Statistics of a test batch are never used: with them, as in the code released with IST, the accuracy on a test
set sorted by class falls to chance.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # also SyncBatchNorm
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

from skerry.model.device import wide
from skerry.model.tensors import copied, frozen_names, named_tensors
from skerry.partitions.share import Share
from skerry.plan.table import Plan

MAX_FACTORS = 2**20
"""Factors that are made at a time, so that they need little memory beside the tensor."""


@torch.no_grad()
def calibrate(
    model: nn.Module,
    plan: Plan,
    share: Share,
    forward: Callable[[nn.Module], object] | None = None,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> nn.Module:
    """Return a calibrated copy of ``model`` in evaluation mode.

    Args:
        model: the full model, as aggregated; it is not changed.
        plan: its plan.
        share: how likely a subnet has each unit: ``Share.of(partition, plan.axes, round)``.
        forward: runs the given module once over all calibration inputs. Needed for models with batch norm. Not called
            if every worker holds everything: the running statistics are those of the full model then.
        total: adds a tensor up over the processes that each run a part of the calibration inputs.

    Returns:
        A copy of ``model``.

    Raises:
        ValueError: a batch norm has no running statistics.

    Example:
        >>> from skerry.partitions import Disjoint, Share
        >>> from skerry.plan import In, Out
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> plan = Plan.from_rules(model, {"0": Out("hidden"), "2": In("hidden")})
        >>> share = Share.of(Disjoint(3, seed=0), plan.axes, 0)
        >>> torch.allclose(calibrate(model, plan, share)[2].weight, model[2].weight / 3)
        True

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting, JMLR 2014, figure 2 (the scale).
    """
    check_batch_norm(model)
    calibrated = scaled(model, plan, share)
    if forward is not None and bool((share.alone < 1).any()):
        estimate_batch_norm_(calibrated, forward, total)
    return calibrated


@torch.no_grad()
def scaled(model: nn.Module, plan: Plan, share: Share) -> nn.Module:
    """Return a copy of ``model`` in evaluation mode, in which weights that read unit u are multiplied by s_u.

    Frozen parameters are not: nothing changes them.
    """
    result, frozen, norms = copied(model).eval(), frozen_names(model), weight_norms(model)
    for name, tensor in named_tensors(result).items():
        if name not in frozen:
            scale_(name, tensor, plan, share, norms)
    return result


def weight_norms(model: nn.Module) -> dict[str, str]:
    """Return the name of the v of each weight norm g v / |v|, by the name of its g."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, ParametrizationList)]
    return {f"{n}.original0": f"{n}.original1" for n, module in lists if isinstance(module[0], _WeightNorm)}


@torch.no_grad()
def scale_(name: str, tensor: Tensor, plan: Plan, share: Share, norms: Mapping[str, str]) -> None:
    """Multiply a full-size tensor by the shares of the units that it reads, in place.

    Args:
        name: of the tensor.
        tensor: its values.
        plan: its plan.
        share: how likely a subnet has each unit.
        norms: ``weight_norms`` of the model.
    """
    row = plan.dims.get(norms.get(name, name), ())
    makes = next((d for d, dim in enumerate(row) if dim is not None and dim.role == "out"), None)
    made = None if makes is None else row[makes]
    for d, dim in enumerate(row):
        if dim is None or dim.role != "in":
            continue
        rows = 1 if made is None else max(1, MAX_FACTORS // len(dim.units))
        for first in range(0, 1 if made is None else len(made.units), rows):
            if makes is None or made is None:
                factors, part = dim.look_up(share.alone, 1.0)[None], tensor
            else:
                factors = share.factors(made.units[first : first + rows], dim.units)
                part = tensor.narrow(makes, first, len(factors))
            if name in norms:
                factors = (factors.square().sum(1) / factors.sum(1).clamp(min=1e-30)).sqrt()[:, None]
            shape = [1] * tensor.dim()
            shape[d] = factors.shape[1]
            if makes is not None:
                shape[makes] = factors.shape[0]
            part.mul_((factors if makes is None or makes < d else factors.mT).reshape(shape).to(tensor))
    if name in plan.scaled:
        tensor.mul_(share.alone[plan.scaled[name]].to(tensor))


@torch.no_grad()
def estimate_batch_norm_(
    model: nn.Module,
    forward: Callable[[nn.Module], object],
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Set the running statistics of every batch norm of ``model`` to those of its inputs in ``forward``.

    Each layer's statistics are set just before it runs, so later layers see activations normalized as they will be at
    test time. A layer that runs several times gets the statistics of all its runs so far.

    Args:
        model: is changed in place; its mode stays.
        forward: runs the given module over the calibration inputs.
        total: adds (count, sum, sum of squares) up over processes, so that the result is that of all their inputs.
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
            x = inputs[0].transpose(0, 1).flatten(1).to(wide(inputs[0]))  # (channels, all else)
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
    """Raise ValueError if a batch norm of ``model`` has no running statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} ({type(module).__name__}): track_running_stats=False would use the statistics of the test "
                "batch, expected running statistics; build it with track_running_stats=True"
            )
