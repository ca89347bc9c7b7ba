"""Slabs: a part of a large tensor, made or read a few rows at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from skerry.subnet.index import Cut, Index, cut_shape

_SLAB_BYTES = 2**23
"""Rows of a large tensor that are made or read at a time, in bytes."""


def by_slabs(shape: torch.Size, dtype: torch.dtype, cut: Cut, slab: Callable[[Tensor, Cut], Tensor]) -> Tensor:
    """Put a part together from slabs; ``slab(rows, rest)`` is ``rows`` of dim 0, cut by ``rest`` in the other dims."""
    out = torch.empty(cut_shape(shape, cut), dtype=dtype, device="cpu")
    if out.numel() == 0:
        return out
    first, *rest = cut or (None,)
    rows = (Index.run(0, shape[0]) if first is None else first).ids
    step = max(1, _SLAB_BYTES // max(1, shape[1:].numel() * max(4, dtype.itemsize)))
    begin = 0
    while begin < len(rows):  # rows[begin:end] lie within ``step`` neighbouring rows of the full tensor
        end = int(torch.searchsorted(rows, rows[begin] + step))
        out[begin:end] = slab(rows[begin:end], tuple(rest))
        begin = end
    return out
