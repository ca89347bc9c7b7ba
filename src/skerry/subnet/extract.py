"""Subnets: the narrow module that a worker trains, cut out of the full model, and written back."""

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skerry.model.tensors import named_tensors
from skerry.plan import rules
from skerry.plan.dims import DealtDim, once_per_units
from skerry.plan.table import Patch, Plan
from skerry.subnet import adapters
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import cut_shape, whole
from skerry.subnet.slicing import put_, take


class Skipped(nn.Module):
    """What stands in a subnet for a block that it does not hold: the identity."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first argument."""
        return x


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy(module, memo)``, without the time it spends on a module's dozen empty tables of hooks."""
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in own):
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = kind.__new__(kind)
    for key, value in vars(module).items():
        if key == "_compiled_call_impl":
            continue  # nn.Module does not copy it either
        if key == "_modules":
            value = {name: None if child is None else _copied(child, memo) for name, child in value.items()}
        elif type(value) in (dict, OrderedDict) and not value:
            value = memo.setdefault(id(value), type(value)())
        elif type(value) not in (bool, int, float, str, type(None)):
            value = copy.deepcopy(value, memo)
        new.__dict__[key] = value
    return new


@torch.no_grad()
def extract(model: nn.Module, plan: Plan, units: Tensor, *, copy_shared: bool = True) -> nn.Module:
    """Return the subnet of ``units``: a real, small, dense module of the same class as ``model``.

    ``model`` is not changed. Tied tensors stay tied, and no full-size tensor is copied on the way. The subnet's tensors
    are new, but with ``copy_shared=False`` parameters that it holds whole are ``model``'s own (to look, not to train).
    """
    cuts = Cuts(plan, units)
    memo: dict[int, object] = {}
    for block, unit in plan.blocks.items():
        if not cuts.held[unit]:
            memo[id(model.get_submodule(block))] = Skipped()
    for name, parameter in model.named_parameters():
        cut = cuts.of(name)
        if cut is not None:
            shared = whole(cut) and not copy_shared
            part = parameter.detach() if shared else take(parameter.detach(), cut)
            memo[id(parameter)] = nn.Parameter(part, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        cut = cuts.of(name)
        if cut is not None:
            memo[id(buffer)] = take(buffer, cut)
    try:
        subnet: nn.Module = _copied(model, memo)
    except Exception as error:  # locks, generators, ...
        raise ValueError(
            f"the model cannot be copied ({error}); keep what cannot be copied outside of its modules"
        ) from error
    fulls = dict(model.named_modules())
    for name, module in subnet.named_modules():
        if name in fulls:
            adapters.fit(module, fulls[name])
            for pattern, patch in plan.patches.items():
                if rules.match(pattern, name) is not None:
                    _apply(patch, pattern, name, module, fulls[name])
    return subnet


def _apply(patch: Patch, pattern: str, name: str, narrow: nn.Module, full: nn.Module) -> None:
    try:
        patch(narrow, full)
    except Exception as error:
        raise ValueError(
            f"patch '{pattern}' failed on {name} ({type(full).__name__}): {type(error).__name__}: {error}; mend the "
            "patch, which is called as patch(narrow module, full module)"
        ) from error


@torch.no_grad()
def write_back(model: nn.Module, plan: Plan, units: Tensor, subnet: nn.Module) -> None:
    """Write the subnet of ``units`` back into ``model``; elements the subnet does not have keep their bits."""
    cuts, parts = Cuts(plan, units), named_tensors(subnet)
    for name, tensor in named_tensors(model).items():
        cut = cuts.of(name)
        if cut is not None:
            put_(tensor, parts[name], cut)


def narrow_model(model: nn.Module, plan: Plan, fraction: float, seed: int) -> nn.Module:
    """Return a fresh narrow network with the first ``fraction`` of each axis of ``model``, at least one unit.

    Modules that have ``reset_parameters`` are initialized anew, as a network of that width would be; what such a
    module does not own keeps the values it has in ``model``.
    """
    units = torch.cat(
        [torch.arange(axis.start, axis.start + max(1, int(fraction * axis.num_units + 0.5))) for axis in plan.axes]
        or [torch.empty(0, dtype=torch.int64)]
    )
    narrow = extract(model, plan, units)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in narrow.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return narrow


def plan_of_subnet(plan: Plan, units: Tensor) -> Plan:
    """Return the plan of the subnet of ``units``, which deals these units out again."""
    cuts = Cuts(plan, units)
    new_id = torch.where(cuts.held, cuts.held.cumsum(0) - 1, -1).to(torch.int32)
    axes, start = [], 0
    for axis in plan.axes:
        count = int(cuts.held[axis.start : axis.start + axis.num_units].sum())
        axes.append(replace(axis, num_units=count, start=start))
        start += count
    kept = once_per_units(lambda dim: dim.look_up(new_id, -1)[cuts.mask(dim)])
    found = {name: cuts.of(name) for name in plan.shapes}
    return Plan(
        axes=tuple(axes),
        dims={
            name: tuple(None if dim is None else DealtDim(kept(dim), dim.role) for dim in row)
            for name, row in plan.dims.items()
            if found[name] is not None
        },
        shapes={name: cut_shape(plan.shapes[name], cut) for name, cut in found.items() if cut is not None},
        blocks={name: int(new_id[unit]) for name, unit in plan.blocks.items() if cuts.held[unit]},
        scaled={name: int(new_id[unit]) for name, unit in plan.scaled.items() if cuts.held[unit]},
        patches=plan.patches,
    )
