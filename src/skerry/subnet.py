"""Subnets: cut the narrow module a worker trains out of the full model, and write it back.

A *cut* says, for each dim of a tensor, which indices a worker holds. ``take`` and ``put_`` apply it to one tensor, so
that weights, batch-norm statistics and optimizer state are all sliced by the same table. ``masked`` is the slow,
obvious meaning of a subnet: the full model in which nothing reads what the worker does not hold.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from skerry import patches, rules
from skerry.optimizer_state import parameter_of
from skerry.plan import DealtDim, Patch, Plan, named_tensors
from skerry.rules import Role

Index = Tensor | tuple[slice, ...]
"""The sorted int64 indices of a dim that are held; where they are a few runs of neighbours, the runs."""

Cut = tuple[Index | None, ...]
"""For each dim the indices that are held, None for all; an empty cut is the whole tensor."""

Cuts = Mapping[str, Cut | None]
"""The cuts of dealt tensors by name; None for a tensor of a block that the worker does not hold. Others are whole."""


def cuts(plan: Plan, units: Tensor) -> Cuts:
    """Return the cut of every dealt tensor for a worker that holds ``units`` (global ids)."""
    held = torch.zeros(plan.num_units + 1, dtype=torch.bool)
    held[units] = True
    held[-1] = True  # where id -1 looks: what is not dealt out is held by everybody
    known: dict[int, Index | None] = {}  # many dims share one tensor of unit ids

    def indices(dim: DealtDim | None) -> Index | None:
        if dim is None:
            return None
        if id(dim.units) not in known:
            index = held[dim.units].nonzero().flatten()
            known[id(dim.units)] = None if len(index) == len(dim.units) else _runs(index)
        return known[id(dim.units)]

    by_name: dict[str, Cut | None] = {name: tuple(indices(dim) for dim in dims) for name, dims in plan.dims.items()}
    if plan.blocks:
        for name in plan.shapes:
            block = plan.block_of(name)
            if block is not None and not held[block]:
                by_name[name] = None
    return by_name


def _runs(index: Tensor, most: int = 4) -> Index:
    """The runs of neighbours in ``index`` if they are few; copying runs is faster than picking indices."""
    ends = (index[1:] != index[:-1] + 1).nonzero().flatten() + 1
    if len(ends) >= most:
        return index
    bounds = [0, *ends.tolist(), len(index)]
    return tuple(slice(int(index[a]), int(index[b - 1]) + 1) if b > a else slice(0, 0) for a, b in pairwise(bounds))


_SLAB = 2**20
"""Elements of a large tensor that are picked along a second dim at a time, so that they stay in a cache."""


def take(tensor: Tensor, cut: Cut = ()) -> Tensor:
    """Return a new tensor with the part of ``tensor`` that ``cut`` names."""
    part = tensor
    for dim, index in enumerate(cut):
        if isinstance(index, tuple):
            runs = [part.narrow(dim, run.start, run.stop - run.start) for run in index]
            part = runs[0] if len(runs) == 1 else torch.cat(runs, dim)
    picked = [(dim, index.to(tensor.device)) for dim, index in enumerate(cut) if isinstance(index, Tensor)]
    if len(picked) > 1 and part.numel() > _SLAB:
        first, rows = picked[0]
        out = tensor.new_empty(cut_shape(tensor.shape, cut))
        step = max(1, _SLAB * part.shape[first] // part.numel())
        for at in range(0, len(rows), step):
            slab = part.index_select(first, rows[at : at + step])
            for dim, index in picked[1:]:
                slab = slab.index_select(dim, index)
            out.narrow(first, at, slab.shape[first]).copy_(slab)
        return out
    for dim, index in picked:
        part = part.index_select(dim, index)
    shares = part.untyped_storage()._cdata == tensor.untyped_storage()._cdata
    return part.clone(memory_format=torch.contiguous_format) if shares else part


def indices_of(index: Index | None, size: int) -> Tensor:
    """Return all indices along a dim of ``size`` that an index of a cut names, sorted, int64."""
    if isinstance(index, Tensor):
        return index
    runs = (slice(0, size),) if index is None else index
    return torch.cat([torch.arange(run.start, run.stop) for run in runs])


def cut_of(plan: Plan, by_name: Cuts, name: str, shape: torch.Size) -> Cut | None:
    """Return the cut of a full-size tensor: its own, or that of the parameter whose optimizer state it is."""
    own = by_name.get(parameter_of(name), ())
    return own if own is None or plan.row(name, shape) else ()


def put_(tensor: Tensor, part: Tensor, cut: Cut = ()) -> None:
    """Write ``part`` into the place in ``tensor`` that ``cut`` names; everything else keeps its bits."""
    for dim, index in enumerate(cut):
        if isinstance(index, tuple):
            rest = tuple(None if d == dim else other for d, other in enumerate(cut))
            begin = 0
            for run in index:
                length = run.stop - run.start
                put_(tensor.narrow(dim, run.start, length), part.narrow(dim, begin, length), rest)
                begin += length
            return
    picked = [(dim, index.to(tensor.device)) for dim, index in enumerate(cut) if isinstance(index, Tensor)]
    if not picked:
        tensor.copy_(part)
    elif len(picked) == 1:
        tensor.index_copy_(*picked[0], part)
    elif len(picked) == 2 and picked[1][0] == picked[0][0] + 1 and tensor.is_contiguous():
        _put_pairs_(tensor, part, *picked[0], picked[1][1])
    else:
        dim, index = picked[0]
        slab = tensor.index_select(dim, index)
        put_(slab, part, tuple(None if d == dim else other for d, other in enumerate(cut)))
        tensor.index_copy_(dim, index, slab)


def _put_pairs_(tensor: Tensor, part: Tensor, dim: int, rows: Tensor, columns: Tensor) -> None:
    """Write ``part`` at ``rows`` of ``dim`` and ``columns`` of the next dim: the two dims as one."""
    flat = tensor.flatten(dim, dim + 1)
    step = max(1, _SLAB // max(1, len(columns)))
    for at in range(0, len(rows), step):
        places = (rows[at : at + step, None] * tensor.shape[dim + 1] + columns).flatten()
        flat.index_copy_(dim, places, part.narrow(dim, at, len(rows[at : at + step])).flatten(dim, dim + 1))


def cut_shape(shape: torch.Size, cut: Cut = ()) -> torch.Size:
    """Return the shape of what ``take`` returns for a tensor of ``shape``."""
    sizes = list(shape)
    for dim, index in enumerate(cut):
        if index is not None:
            sizes[dim] = len(index) if isinstance(index, Tensor) else sum(run.stop - run.start for run in index)
    return torch.Size(sizes)


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


@torch.no_grad()
def masked(model: nn.Module, plan: Plan, units: Tensor) -> nn.Module:
    """Return a full-size copy of ``model`` in which nothing reads what a holder of ``units`` does not have.

    The weights that would read it are zero, and blocks that are not held are the identity. For tests:
    ``extract(model, plan, units)`` computes the same outputs and, on what is held, the same gradients.
    """
    reference = copy.deepcopy(model)
    for block, unit in plan.blocks.items():
        if unit not in units:
            reference.set_submodule(block, Skipped())
    held = torch.zeros(plan.num_units + 1, dtype=torch.bool)
    held[units] = True
    held[-1] = True
    for name, tensor in named_tensors(reference).items():
        for dim, dealt in enumerate(plan.dims.get(name, ())):
            if dealt is not None and dealt.role == "in":
                tensor.index_fill_(dim, (~held[dealt.units]).nonzero().flatten().to(tensor.device), 0)
    return reference


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


def fill_(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put ``tensors`` in the place of the parameters and buffers of ``module``, by name; ties stay tied."""
    new: dict[int, Tensor] = {}
    for name, parameter in module.named_parameters():
        new[id(parameter)] = parameter_like(tensors[name], parameter)
    for name, buffer in module.named_buffers():
        new[id(buffer)] = tensors[name]
    for each in module.modules():
        for own, tensor in [*each._parameters.items(), *each._buffers.items()]:
            if tensor is not None:
                setattr(each, own, new[id(tensor)])  # as an attribute: nn.LSTM keeps a second list of its weights
    return module


def parameter_like(tensor: Tensor, like: nn.Parameter) -> nn.Parameter:
    """Return ``tensor`` as a parameter that is trained or not as ``like`` is, with the marks libraries put on that."""
    new = nn.Parameter(tensor, requires_grad=like.requires_grad)
    new.__dict__.update(vars(like))
    return new
