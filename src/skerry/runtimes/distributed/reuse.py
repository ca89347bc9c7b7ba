"""Memory that is written over: new memory costs time, so tensors that are no longer needed are used again."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def reusable(
    tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size], used: Iterable[Tensor] = ()
) -> dict[str, Tensor]:
    """Return the named tensors that have the shape which is needed of that name, and are not among those in use."""
    taken = {tensor.data_ptr() for tensor in used}
    return {n: t for n, t in tensors if shapes.get(n) == t.shape and t.data_ptr() not in taken}


def room(free: Tensor | None, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor to write to: the free one if it fits, else a new one."""
    if free is not None and (free.shape, free.dtype) == (shape, dtype) and free.is_contiguous():
        return free
    return torch.empty(shape, dtype=dtype, device=device)
