"""IDX, the file format of MNIST: four magic bytes, the dims as big-endian uint32, then the array's bytes.

The magic bytes are 0, 0, the element type (8: uint8, the only one supported) and the number of dims. Files are read
whole: the largest in use has 47 MB.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError

UINT8 = 8
MAX_DIMS = 8  # far above any in use, and below what numpy can hold
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file, plain or gzip, into a writable uint8 array of the shape given by its header.

    Gzip is recognised by content, not by name: browsers unpack ``.gz`` files without renaming them.

    Raises:
        DataError: the file can't be read, is not IDX of uint8, or is shorter or longer than its header says. The
            caller, who knows where the file comes from, adds the remedy.
    """
    content = _read_bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or not 1 <= content[3] <= MAX_DIMS:
        first = content[:4].hex(" ") or "none"
        raise DataError(f"{path}: not an IDX file, first bytes {first}, expected 00 00 08 and the number of dims")
    if content[2] != UINT8:
        raise DataError(f"{path}: IDX element type {content[2]}, expected {UINT8} (uint8)")
    num_dims = content[3]
    header_bytes = 4 + 4 * num_dims
    if len(content) < header_bytes:
        raise DataError(f"{path}: truncated inside its header at {len(content)} bytes, expected {header_bytes}")
    shape = struct.unpack_from(f">{num_dims}I", content, 4)
    got, expected = len(content) - header_bytes, math.prod(shape)
    if got != expected or expected == 0:
        fault = "empty" if expected == 0 else "truncated" if got < expected else "too long"
        raise DataError(f"{path}: {fault}, {got} bytes after the header, expected {expected} for shape {shape}")
    # A copy, because an array over bytes is read-only and torch.from_numpy warns about that.
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape).copy()


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write ``array`` to ``path`` as a plain IDX file; the inverse of ``read_idx``."""
    assert array.dtype == np.uint8
    with path.open("wb") as file:
        file.write(struct.pack(f">4B{array.ndim}I", 0, 0, UINT8, array.ndim, *array.shape))
        file.write(np.ascontiguousarray(array).data)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:  # before OSError, the base class of BadGzipFile
        raise DataError(f"{path}: truncated or altered gzip ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
