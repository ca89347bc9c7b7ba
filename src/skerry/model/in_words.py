"""Tensors and errors in words, for messages of one line."""

from typing import Any

import torch

from skerry.model.inputs import tensors_of

OF_TORCH = (RuntimeError, TypeError, IndexError)
"""The types with which torch tells of wrong shapes, dtypes and labels; those derived from them mean other things."""

CHOOSE_COLUMNS = 'choose columns: skerry.from_loaders(loader, num_workers=4, inputs=[...], label="...")'


def described(value: Any) -> str:
    """Return dtypes and shapes of the tensors in ``value``, and the range of int64 ones."""
    return ", ".join(
        f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
        + (f" of {int(t.min())} to {int(t.max())}" if t.numel() and t.dtype == torch.int64 else "")
        for t in tensors_of(value)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
