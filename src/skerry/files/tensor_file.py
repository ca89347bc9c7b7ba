"""Writes safetensors files a few megabytes at a time, so that data waiting for the disk takes little memory.

safetensors' own writer hands over the whole file at once. Until it is on the disk it counts as memory of this process:
in a cgroup with a limit, a slow disk can get the process killed. Files are read with safetensors. The format: 8 bytes,
the length of the header; the header in JSON, with dtype, shape and place of each tensor; the tensors.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_WAITING = 2**24
"""The most bytes that may wait for the disk."""


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str],
    arriving: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Write a safetensors file.

    Args:
        tensors: CPU tensors by name.
        path: the file.
        metadata: texts by name, stored with them.
        arriving: yields the names with CPU tensors, in any order; then ``tensors`` only give dtypes and shapes.

    Raises:
        ValueError: safetensors has no such dtype.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise ValueError(f"{name}: safetensors files cannot hold {tensor.dtype}; convert it")
    # Large elements first, so that every tensor begins at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins, end = {}, 0
    for name in order:
        begins[name], end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _CODES[tensors[name].dtype], "shape": shape, "data_offsets": [begins[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        waiting, start = 0, 8 + len(text)
        for name, tensor in ((name, tensors[name]) for name in order) if arriving is None else arriving:
            assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape), name
            file.seek(start + begins.pop(name))
            whole = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(whole), _WAITING):
                part = whole[begin : begin + _WAITING]
                while part:
                    written = file.write(part)
                    part, waiting = part[written:], waiting + written
                if waiting >= _WAITING:
                    _to_disk(file.fileno())
                    waiting = 0
            del tensor, whole  # before the next one arrives
        assert not begins, f"{[*begins]} did not arrive"
        _to_disk(file.fileno())


def _to_disk(file: int) -> None:
    """Wait until everything is on the disk, and drop its copy in memory."""
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
