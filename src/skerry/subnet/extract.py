"""Subnets: cut the narrow module a worker trains out of the full model, and write it back.

A *cut* says, for each dim of a tensor, which indices a worker holds. ``take`` and ``put_`` apply it to one tensor, so
that weights, batch-norm statistics and optimizer state are all sliced by the same table. ``masked`` is the slow,
obvious meaning of a subnet: the full model in which nothing reads what the worker does not hold.
"""

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skerry.model.tensors import named_tensors
from skerry.plan import rules
from skerry.plan.dims import DealtDim
from skerry.plan.rules import Role
from skerry.plan.table import Patch, Plan
from skerry.subnet import adapters as patches
from skerry.subnet.cuts import cut_shape, cuts, put_, take


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
    by_name = cuts(plan, units)
    memo: dict[int, object] = {}
    for block, unit in plan.blocks.items():
        if unit not in units:
            memo[id(model.get_submodule(block))] = Skipped()
    for name, parameter in model.named_parameters():
        cut = by_name.get(name, ())
        if cut is None:
            continue
        whole = all(index is None for index in cut)
        part = parameter.detach() if whole and not copy_shared else take(parameter.detach(), cut)
        memo[id(parameter)] = nn.Parameter(part, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        cut = by_name.get(name, ())
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
            patches.fit(module, fulls[name])
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
    by_name = cuts(plan, units)
    parts = named_tensors(subnet)
    for name, tensor in named_tensors(model).items():
        cut = by_name.get(name, ())
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
    held = torch.zeros(plan.num_units + 1, dtype=torch.bool)
    held[units] = True
    new_id = torch.cat([held[:-1].cumsum(0) - 1, torch.tensor([-1])]).to(torch.int32)  # the last is where id -1 looks
    new_id[:-1][~held[:-1]] = -1
    axes, start = [], 0
    for axis in plan.axes:
        count = int(held[axis.start : axis.start + axis.num_units].sum())
        axes.append(replace(axis, num_units=count, start=start))
        start += count
    by_name, known = cuts(plan, units), dict[tuple[int, Role], DealtDim]()

    def renumbered(dim: DealtDim) -> DealtDim:
        key = (id(dim.units), dim.role)
        if key not in known:
            kept = held[dim.units] | (dim.units < 0)
            known[key] = DealtDim(new_id[dim.units[kept]], dim.role)
        return known[key]

    cut_by_name = {name: by_name.get(name, ()) for name in plan.shapes}
    return Plan(
        axes=tuple(axes),
        dims={
            name: tuple(None if dim is None else renumbered(dim) for dim in row)
            for name, row in plan.dims.items()
            if cut_by_name[name] is not None
        },
        shapes={name: cut_shape(plan.shapes[name], cut) for name, cut in cut_by_name.items() if cut is not None},
        blocks={name: int(new_id[unit]) for name, unit in plan.blocks.items() if held[unit]},
        scaled={name: int(new_id[unit]) for name, unit in plan.scaled.items() if held[unit]},
        patches=plan.patches,
    )
