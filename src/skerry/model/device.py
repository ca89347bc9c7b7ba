"""Devices: the one to train on, by name, and the type of number to sum in on it."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from skerry.model.in_words import first_line

_LONG = 100
"""The most characters of what torch says."""


def chosen_device(device: str | torch.device | None, model: nn.Module | None = None) -> torch.device:
    """Return the device to train on.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``"auto"``: CUDA where there is one, else the CPU;
            None: the device of ``model``, or the CPU if that is on meta. ``"cuda"`` is device number ``LOCAL_RANK``
            where torchrun has set it, modulo the number of devices.
        model: the full model.

    Raises:
        ValueError: there is no such device, or it has no memory left.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    if device is None:
        tensors: list[Any] = [] if model is None else [*model.parameters(), *model.buffers()]
        return next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        if found.type == "cuda" and found.index is None and torch.cuda.is_available():
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        if found.type != "meta":
            return torch.empty(1, device=found).device
        said = "it holds no values"
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        said = first_line(error)
        if len(said) > _LONG:  # it lists all devices, or all kernels
            said = "torch knows no such device" if "device string" in said else f"{said[:_LONG]}..."
    raise ValueError(
        f"device={str(device)!r}: it cannot be used here ({said}); expected cpu, cuda, cuda:1, mps or auto"
    )


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which to sum what is in ``tensor``: float64 or complex128, half of that on MPS."""
    on_mps = tensor.device.type == "mps"  # which has no float64
    if tensor.is_complex():
        return torch.complex64 if on_mps else torch.complex128
    return torch.float32 if on_mps else torch.float64
