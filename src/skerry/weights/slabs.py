"""Slabs: a large tensor is drawn or read a few rows at a time, so that little memory is needed beside the result."""

from collections.abc import Callable

import torch
from torch import Tensor

from skerry.subnet.index import Cut, Index, cut_shape

_SLAB_BYTES = 2**23
"""The most bytes of rows that are drawn or read at a time."""


def by_slabs(shape: torch.Size, dtype: torch.dtype, cut: Cut, slab: Callable[[Tensor, Cut], Tensor]) -> Tensor:
    """Return a part of a tensor, put together from slabs.

    Args:
        shape: of the full tensor, of one dim or more.
        dtype: of the result.
        cut: which part.
        slab: ``slab(rows, rest)`` returns ``rows`` (int64 indices of dim 0), and of the other dims the part ``rest``.
    """
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
