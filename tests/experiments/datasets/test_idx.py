"""IDX files against their inverse writer, and damaged in every way: always a DataError that names it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.idx import read_idx, write_idx

PLAIN = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
ZIPPED = gzip.compress(PLAIN)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "some-file"


def read_or_refuse(path: Path) -> np.ndarray | None:
    """Return the array, or None where the file is refused with a DataError that names it."""
    refusal = ""
    try:
        return read_idx(path)
    except DataError as error:
        refusal = str(error)
    assert "some-file" in refusal
    return None


def test_the_format_by_hand(path: Path):
    path.write_bytes(PLAIN)
    np.testing.assert_array_equal(read_idx(path), np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    assert read_idx(path).flags.writeable


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(max_dims=4, max_side=4)), st.booleans())
def test_read_inverts_write(path: Path, array: np.ndarray, zipped: bool):
    write_idx(path, array)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("content", [PLAIN, ZIPPED], ids=["plain", "gzip"])
def test_every_truncation_is_refused(path: Path, content: bytes):
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="some-file"):
            read_idx(path)


def test_every_flipped_bit_of_a_gzip_is_refused_or_harmless(path: Path):
    for position in range(8 * len(ZIPPED)):
        flipped = bytearray(ZIPPED)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        array = read_or_refuse(path)
        assert array is None or array.tobytes() == PLAIN[12:]  # harmless: a bit of the time stamp, say


@settings(deadline=None)
@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail))
def test_arbitrary_bytes_never_raise_another_error(path: Path, content: bytes):
    path.write_bytes(content)
    array = read_or_refuse(path)
    assert array is None or array.size == len(content) - 4 - 4 * content[3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>no such page</html>", r"\b3c 68 74 6d\b"),
        (b"", r"\b00 00 08\b"),
        (b"\0\0\x0d" + PLAIN[3:], r"\b13\b.*\b8\b.*\buint8\b"),
        (PLAIN + b"\0", r"\b7\b.*\b6\b.*\(2, 3\)"),
        (PLAIN[:-1], r"\b5\b.*\b6\b.*\(2, 3\)"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 0]), r"\b0\b.*\(0,\)"),
        (b"\0\0\x08\xc8" + bytes(800), r"\b00 00 08 c8\b"),
    ],
)
def test_foreign_files_are_told_apart(path: Path, content: bytes, message: str):
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"some-file.*{message}"):
        read_idx(path)


def test_an_unreadable_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
