"""TODO."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from skerry.model.optimizer_state import parameter_of
from skerry.plan.dims import DealtDim
from skerry.plan.table import Plan

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
