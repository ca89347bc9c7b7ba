"""Prune: keep the strongest units of each axis, as a smaller network of its own."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from skerry.plan.dims import Axis
from skerry.plan.table import Plan
from skerry.subnet.extract import extract
from skerry.subnet.side_by_side import SideBySide

Keep = float | Mapping[str, float]


def prune(model: nn.Module, plan: Plan, keep: Keep) -> nn.Module:
    """Return a network with the units of ``model`` whose weights are largest: real, small and dense.

    Of each axis the units with the largest ``unit_norms`` stay. ``model`` is not changed, and what reads the units is
    not rescaled: train the result for some more steps (docs/pruning.md).

    Args:
        model: a trained model.
        plan: what can be pruned, from ``skerry.discover`` or rules. Take out what shall stay whole, such as a residual
            stream: ``plan.without(...)``.
        keep: the fraction of its units that each axis keeps, above 0, at most 1, rounded to whole units. Or the
            fraction for some axes, by pattern of their names (``{"*.mlp": 0.5}``); the others stay whole, and the last
            pattern that matches counts.

    Raises:
        ValueError: ``keep`` is out of range, leaves an axis without units or names no axis; the plan has no axes; an
            axis has no weights to go by; the model is narrow nets side by side; or the plan is of another model.

    Example:
        >>> from skerry.plan import In, Out
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> plan = Plan.from_rules(model, {"0": Out("hidden"), "2": In("hidden")})
        >>> prune(model, plan, keep=0.5)
        Sequential(
          (0): Linear(in_features=8, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )

    References:
        Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv 1608.08710,
        section 3 (there by the l1 norm).
        Wang, Dun, Liao, Jermaine, Kyrillidis: LoFT, AISTATS 2023, arXiv 2210.16169 (one shot, by the l2 norm).
    """
    return extract(model, plan, strongest_units(model, plan, keep))


def strongest_units(model: nn.Module, plan: Plan, keep: Keep) -> Tensor:
    """Return the ids, int64 and sorted, of the units that ``prune`` keeps; arguments and errors as there."""
    plan.check(model)
    if isinstance(model, SideBySide):
        raise ValueError(
            "model: narrow nets side by side, which are narrow already, expected one net; prune each of model.nets "
            "with its own plan, or train by a method that returns the whole model, such as ist or local_sgd"
        )
    if not plan.axes:
        raise ValueError("plan: has no axes, so nothing can be pruned; print(plan) says why")
    if isinstance(keep, Mapping) and not keep:
        raise ValueError("keep={}: names no axis, so nothing would be pruned; give a fraction, such as 0.5")
    nums, norms = num_kept(plan, keep), unit_norms(model, plan)
    kept = []
    for axis in plan.axes:
        own = norms[axis.start : axis.units.stop]
        if nums[axis.name] < axis.num_units and not bool(own.isfinite().all() and own.any()):
            raise ValueError(
                f"axis '{axis.name}': the weights of its units are all 0, not finite or not there, so none is stronger "
                "than another; keep it whole (plan.without)"
            )
        kept.append(axis.start + own.topk(nums[axis.name]).indices)
    return torch.cat(kept).sort().values


def num_kept(plan: Plan, keep: Keep) -> dict[str, int]:
    """Return how many units each axis keeps, by its name; arguments and errors as in ``prune``."""
    nums = {axis.name: axis.num_units for axis in plan.axes}
    for pattern, fraction in keep.items() if isinstance(keep, Mapping) else [("*", keep)]:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ValueError(f"keep={fraction!r}: expected a fraction above 0, at most 1, such as 0.5")
        nums |= {axis.name: _num(axis, fraction) for axis in plan.only(pattern).axes}
    return nums


def _num(axis: Axis, fraction: float) -> int:
    num = int(fraction * axis.num_units + 0.5)
    if num < 1:
        raise ValueError(
            f"keep={fraction:g}: leaves no unit of axis '{axis.name}' ({axis.num_units} units), expected at least "
            f"{0.5 / axis.num_units:g}; or leave the axis whole (plan.without)"
        )
    return num


@torch.no_grad()
def unit_norms(model: nn.Module, plan: Plan) -> Tensor:
    """Return the l2 norm of what makes each unit, (num_units,) float64 on the CPU.

    That is its filter in a convolution, its row in a linear layer, its rows in all projections of a head; of a block or
    an expert all weights. Biases and the scales of norms do not count.
    """
    squares = torch.zeros(plan.num_units + 1, dtype=torch.float64)  # the last is of what is not dealt out
    for name, weight in _weights(model):
        found = weight.detach().cpu().double().square()
        block = plan.block_of(name)
        if block is not None:
            squares[block] += found.sum()
        for d, dim in enumerate(plan.dims.get(name, ())):
            if dim is not None and dim.role == "out":
                squares.index_add_(0, dim.units.long() % len(squares), found.transpose(0, d).flatten(1).sum(1))
    return squares[:-1].sqrt()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of two or more dims; in the place of a parametrized one what is computed from it."""
    for name, parameter in model.named_parameters():
        owner, parametrized, rest = name.partition(".parametrizations.")
        weight = getattr(model.get_submodule(owner), rest.split(".")[0]) if parametrized else parameter
        if weight.dim() > 1 and weight.shape == parameter.shape:  # not the lengths of a weight norm
            yield name, weight
