"""Reads a part of one tensor from a safetensors file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skerry.subnet.index import Cut, Index
from skerry.subnet.slicing import take
from skerry.weights.slabs import by_slabs


def read_part(path: Path, name: str, shape: torch.Size, dtype: torch.dtype, cut: Cut = ()) -> Tensor:
    """Return the part ``cut`` of a tensor in a safetensors file.

    Args:
        path: the file.
        name: of the tensor in the file.
        shape: of the whole tensor.
        dtype: of the result.
        cut: which part.

    Raises:
        ValueError: the file cannot be read.
    """
    if not shape:
        with opened(path) as file:
            return take(file.get_tensor(name)).to(dtype)

    def read_rows(rows: Tensor, rest: Cut) -> Tensor:
        # Opened for each slab: the file is mapped into memory, and pages that were read stay until it is closed.
        with opened(path) as file:
            begin, end = int(rows[0]), int(rows[-1]) + 1
            return take(file.get_slice(name)[begin:end], (Index(rows - begin), *rest))

    return by_slabs(shape, dtype, cut, read_rows)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise ValueError if it cannot be read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); write or fetch it again") from error
