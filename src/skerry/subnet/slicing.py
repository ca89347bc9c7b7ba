"""Slicing: read and write a part of a tensor."""

import torch
from torch import Tensor

from skerry.subnet.index import Cut, cut_shape

_SLAB = 2**20
"""A large tensor is indexed along its second dim so many elements at a time: they stay in a cache."""


def take(tensor: Tensor, cut: Cut = ()) -> Tensor:
    """Return a new tensor with the part ``cut`` of ``tensor``."""
    part = tensor
    for dim, index in enumerate(cut):
        if index is not None and index.runs is not None:
            runs = [part.narrow(dim, run.start, run.stop - run.start) for run in index.runs]
            part = runs[0] if len(runs) == 1 else torch.cat(runs, dim)
    picked = _picked(tensor, cut)
    if len(picked) > 1 and part.numel() > _SLAB:
        first, rows = picked[0]
        out = tensor.new_empty(cut_shape(tensor.shape, cut))
        step = max(1, _SLAB * part.shape[first] // part.numel())
        for at in range(0, len(rows), step):
            slab = part.index_select(first, rows[at : at + step])
            for dim, ids in picked[1:]:
                slab = slab.index_select(dim, ids)
            out.narrow(first, at, slab.shape[first]).copy_(slab)
        return out
    for dim, ids in picked:
        part = part.index_select(dim, ids)
    copied = bool(picked) or any(index is not None and len(index.runs or ()) > 1 for index in cut)
    return part if copied else part.clone(memory_format=torch.contiguous_format)


def put_(tensor: Tensor, part: Tensor, cut: Cut = ()) -> None:
    """Write ``part`` into the part ``cut`` of ``tensor``, in place; all other elements keep their bits."""
    for dim, index in enumerate(cut):
        if index is not None and index.runs is not None:
            begin = 0
            for run in index.runs:
                length = run.stop - run.start
                put_(tensor.narrow(dim, run.start, length), part.narrow(dim, begin, length), _without(cut, dim))
                begin += length
            return
    picked = _picked(tensor, cut)
    if not picked:
        tensor.copy_(part)
    elif len(picked) == 1:
        tensor.index_copy_(*picked[0], part)
    elif len(picked) == 2 and picked[1][0] == picked[0][0] + 1 and tensor.is_contiguous():
        _put_pairs_(tensor, part, *picked[0], picked[1][1])
    else:
        dim, ids = picked[0]
        slab = tensor.index_select(dim, ids)
        put_(slab, part, _without(cut, dim))
        tensor.index_copy_(dim, ids, slab)


def _picked(tensor: Tensor, cut: Cut) -> list[tuple[int, Tensor]]:
    """Return the dims of ``cut`` whose indices are not runs, with these indices on the device of ``tensor``."""
    return [
        (dim, index.ids.to(tensor.device)) for dim, index in enumerate(cut) if index is not None and index.runs is None
    ]


def _without(cut: Cut, dim: int) -> Cut:
    return tuple(None if d == dim else index for d, index in enumerate(cut))


def _put_pairs_(tensor: Tensor, part: Tensor, dim: int, rows: Tensor, columns: Tensor) -> None:
    """Write ``part`` at ``rows`` of ``dim`` and ``columns`` of the next dim; the two dims are flattened to one."""
    flat = tensor.flatten(dim, dim + 1)
    step = max(1, _SLAB // max(1, len(columns)))
    for at in range(0, len(rows), step):
        places = (rows[at : at + step, None] * tensor.shape[dim + 1] + columns).flatten()
        flat.index_copy_(dim, places, part.narrow(dim, at, len(rows[at : at + step])).flatten(dim, dim + 1))
