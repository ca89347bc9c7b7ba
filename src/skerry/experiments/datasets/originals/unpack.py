"""Reads members of tar archives and Debian packages into memory; nothing is ever written where an archive says."""

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from skerry.experiments.datasets.errors import DataError

MOST_BYTES = 2**30
"""The most that an archive of no known checksum may unpack to."""

PACKAGE_MAGIC = b"!<arch>\n"
_DECOMPRESS: dict[bytes, Callable[[BinaryIO], object]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open}
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError)


def members(path: Path, wanted: Callable[[str], bool], most_bytes: int = MOST_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the regular files in an archive whose names are ``wanted``, in the archive's order.

    Args:
        path: a tar archive, plain, gzip or xz, or a Debian package with one of them.
        wanted: told a name without a leading ``./``.
        most_bytes: the most that the whole archive may unpack to.

    Raises:
        DataError: it can't be read, is damaged or truncated, or unpacks to more.
    """
    try:
        with path.open("rb") as file:
            is_package = file.read(len(PACKAGE_MAGIC)) == PACKAGE_MAGIC
            plain = decompressed(_tar_of_package(PACKAGE_MAGIC + file.read(most_bytes)) if is_package else file)
            bounded = cast(BinaryIO, _Bounded(plain, most_bytes, path))
            with tarfile.open(fileobj=bounded, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    # A sparse file may be far larger than its archive.
                    if member.isreg() and not member.issparse() and wanted(name):
                        content = tar.extractfile(member)
                        assert content is not None
                        yield name, content.read()
            while bounded.read(2**20):
                pass  # the padding, up to the checksum at the end
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path.name}: truncated or altered archive ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from error


def decompressed(file: BinaryIO) -> BinaryIO:
    """Return a reader of ``file``, decompressed if it is gzip or xz."""
    file.seek(0)
    start = file.read(5)
    file.seek(0)
    for magic, opened in _DECOMPRESS.items():
        if start.startswith(magic):
            return cast(BinaryIO, opened(file))
    return file


def _tar_of_package(package: bytes) -> BinaryIO:
    """Return the member ``data.tar.*`` of a Debian package, which is an ``ar`` archive: headers of 60 bytes, files."""
    at = len(PACKAGE_MAGIC)
    while at + 60 <= len(package):
        size = int(package[at + 48 : at + 58])
        if size < 0:  # would be read for ever
            raise ValueError(f"a member of {size} bytes")
        if package[at : at + 16].startswith(b"data.tar"):
            return io.BytesIO(package[at + 60 : at + 60 + size])
        at += 60 + size + size % 2
    raise EOFError("no data.tar in it")


class _Bounded:
    """The ``read`` of ``file``, which raises DataError after ``most_bytes``."""

    def __init__(self, file: BinaryIO, most_bytes: int, path: Path) -> None:
        self._file, self._left, self._path = file, most_bytes, path
        self._most_bytes = most_bytes

    def read(self, num_bytes: int) -> bytes:
        part = self._file.read(num_bytes)
        self._left -= len(part)
        if self._left < 0:
            raise DataError(f"{self._path}: unpacks to more than {self._most_bytes} bytes, which is refused")
        return part
