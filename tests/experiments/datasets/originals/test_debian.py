"""The task of packages against one worked out by hand; lists in every form, from apt and from files."""

import gzip
import hashlib
import lzma

import numpy as np
import pytest

from skerry.experiments.datasets import debian_depends, fetch
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals import debian

PACKAGES = """Package: tool2
Section: utils
Depends: libc6 (>= 2.34), libx | liby, rare
Description: a Tool, a very good tool
 tool and more text that does not count

Package: lib-x
Version: 1
Depends: rare2

Package: lib-x
Version: 2
Section: libs
Depends: libc6:any, libx
Pre-Depends: dpkg
Description: tool

Package: alone
Description: a tool
"""


@pytest.fixture(autouse=True)
def _few_packages(monkeypatch):
    monkeypatch.setattr(debian, "PACKAGES_WITH_A_WORD", 2)


def rows(arrays, key):
    return [row.tolist() for row in np.split(arrays[f"{key}_indices"], arrays[f"{key}_indptr"][1:-1])]


def check(arrays):
    assert rows(arrays, "x") == [[1], [0, 1]]  # lib-x: tool; tool2: a, tool. Words are a, tool.
    assert rows(arrays, "y") == [[0, 1], [0, 1]]  # libc6, libx
    assert (arrays["x_shape"].tolist(), arrays["y_shape"].tolist()) == ([2, 2], [2, 2])
    assert arrays["test"].tolist() == [
        int(hashlib.sha1(name.encode()).hexdigest(), 16) % 5 == 0 for name in ("lib-x", "tool2")
    ]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_the_task_is_the_one_worked_out(tmp_path, pack):
    (tmp_path / "Packages").write_bytes(pack(PACKAGES.encode()))
    path = fetch("debian-depends", tmp_path / "Packages", say=print) / "debian_depends.npz"
    with np.load(path) as arrays:
        check(dict(arrays))


def test_apts_lists_are_read_and_another_list_only_if_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "text").write_text(PACKAGES)
    apt = tmp_path / "bin" / "apt-cache"
    apt.parent.mkdir()
    apt.write_text(
        f'#!/bin/sh\n[ "$1" = dumpavail ] && while IFS= read -r line; do echo "$line"; done < {tmp_path}/text\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent))
    fetch("debian-depends", say=print)
    before = debian_depends()
    assert (before.num_words, before.num_labels) == (2, 2)
    (tmp_path / "text").write_text("")
    said = []
    fetch("debian-depends", say=said.append)
    assert "nothing to do" in said[0]
    (tmp_path / "Packages").write_text(PACKAGES.replace("libx", "rare"))
    fetch("debian-depends", tmp_path / "Packages", say=print)
    assert debian_depends().num_labels == 2
    with np.load(tmp_path / "cache-home" / "skerry" / "debian-depends" / "debian_depends.npz") as arrays:
        assert rows(arrays, "y") == [[0, 1], [0, 1]]
        assert arrays["y_shape"].tolist() == [2, 2]
    with pytest.raises(DataError, match=r"apt's lists: no packages.*apt-get is not installed.*--from Packages\.xz"):
        fetch("debian-depends", target=tmp_path / "other")


@pytest.mark.parametrize("damage", ["cut", "other", "folder"])
def test_another_file_is_told_in_one_line(tmp_path, damage):
    path = tmp_path / "Packages"
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(lzma.compress(PACKAGES.encode())[:-20] if damage == "cut" else b"no list")
    words = {"cut": "truncated or altered", "other": "no packages that depend on others", "folder": "can't be read"}
    with pytest.raises(DataError, match=rf"Packages: .*{words[damage]}"):
        fetch("debian-depends", path)
