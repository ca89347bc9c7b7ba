"""Members of archives against what was packed; archives that are damaged, too large or point outside."""

import gzip
import lzma
import os
import tarfile

import pytest
from originals import deb, tar

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.unpack import members

FILES = {"a/one": os.urandom(3000), "two": b"", "a/b/three": b"3"}


def everything(path, **bounds):
    return dict(members(path, lambda name: True, **bounds))


@pytest.mark.parametrize("pack", [tar, lambda f: gzip.compress(tar(f)), lambda f: lzma.compress(tar(f)), deb])
def test_the_members_are_those_that_were_packed(tmp_path, pack):
    path = tmp_path / "archive"
    path.write_bytes(pack(FILES))
    assert everything(path) == FILES
    assert dict(members(path, "a/one".__eq__)) == {"a/one": FILES["a/one"]}


@pytest.mark.parametrize("pack", [lambda f: gzip.compress(tar(f)), deb])
def test_no_damage_goes_unnoticed(tmp_path, pack):
    path, whole = tmp_path / "archive", pack(FILES)
    for cut in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"archive: truncated or altered"):
            everything(path)
    at = whole.index(b"data.tar") + 60 if pack is deb else 0  # what is compressed has a checksum
    for k in range(at + 20, len(whole) - 20, 97):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 255]) + whole[k + 1 :])
        with pytest.raises(DataError, match=r"archive: truncated or altered"):
            everything(path)


def test_a_package_whose_member_has_a_negative_size_is_damaged(tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(b"!<arch>\n" + f"{'debian-binary':<48}{-60:<10}`\n".encode())
    with pytest.raises(DataError, match=r"archive: truncated or altered archive \(a member of -60 bytes\)"):
        everything(path)


def test_links_and_other_kinds_are_left_out_and_nothing_is_written(tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(tar({"../../outside": b"x", "/root": b"y"}, {"link": "/etc/passwd"}))
    assert everything(path) == {"../../outside": b"x", "/root": b"y"}  # names, which lead nowhere
    assert list(tmp_path.iterdir()) == [path]


def test_what_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(tar({"large": bytes(10**6), "wanted": b"x"})))
    assert len(everything(path)["large"]) == 10**6
    for wanted in ("wanted", "large"):
        with pytest.raises(DataError, match=r"bomb: unpacks to more than 500000 bytes"):
            dict(members(path, wanted.__eq__, 500_000))


def test_a_sparse_file_which_may_be_far_larger_than_its_archive_is_left_out(tmp_path):
    path = tmp_path / "sparse"
    info = tarfile.TarInfo("hole")
    sparse = {"major": "0", "minor": "1", "map": "0,0", "size": "9" * 9}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    with tarfile.open(path) as archive:
        assert archive.next().issparse()
    assert everything(path) == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: can't be read"):
        everything(tmp_path / "nowhere")
    (tmp_path / "text").write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match="text: truncated or altered"):
        everything(tmp_path / "text")
