"""Data sets that are one file each: the frozen ones of the benchmarks in ``$SKERRY_DATA``, or what ``fetch`` made."""

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.loading import cache_folder
from skerry.experiments.datasets.originals.official import how_to_fetch
from skerry.predictor import Scaling

ARCHIVES = {
    "speech_commands_12.npz": "29a2890eb0451c7b7b6d47bf8a48447622c996412c1afae9422c31991b9d9165",
    "debian_depends.npz": "430c15e275675c650646bef9fc6b9c555417efc4fa2f930e51ead839efcac895",
    "cifar10_jpeg_train.npz": "4ac2eef288677d262afdf20645eb4b1adb79d765dc01bf9dde56a2049aad30ab",
    "cifar10_jpeg_test.npz": "d67bb56f69ad14aafe4ecd8c3255d2dbc658d64f9cfae6c1f5b2598c43cd59d4",
    "cora.npz": "78f072c69a1dc658b10486b6016a729da1419076b55f7c0fb89a4d90233c0658",
    "citeseer.npz": "0367aa755f9a5418cf4e728225b655970f1feba47faa69b3cf47798eac834006",
    "wordnet.npz": "aa1af409c7b8d72788afb80fe8e2eb141f7a80f87f9b427f17f8e36f9a746063",
    "tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}
"""The sha256 of each frozen file."""

MADE = {
    "cifar10": "cifar10.npz",
    "speech-commands": "speech_commands.npz",
    "debian-depends": "debian_depends.npz",
    "cora": "cora.npz",
    "citeseer": "citeseer.npz",
    "wordnet": "wordnet.npz",
    "shakespeare": "tinyshakespeare.txt",
    "python-docs": "python_docs.txt",
}
"""The file that ``fetch`` makes of each data set, in ``cache_folder``. A frozen one of its name goes before it."""


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification data set in memory.

    Attributes:
        x_train, x_test: uint8, samples first.
        y_train, y_test: class of each sample, int64.
        class_names: the name of each class.
        mean, std: of ``x_train / scale``, float32, in a shape that broadcasts over samples.
        scale: what stored values are divided by.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    scale: float = 1.0

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def scaling(self) -> Scaling:
        """Turns stored samples into floats with mean 0 and variance 1 over the training samples."""
        return Scaling(self.mean, self.std, self.scale)


def frozen(file: str) -> Path | None:
    """Return where ``$SKERRY_DATA`` has the frozen ``file``; None if it has not."""
    folder = os.environ.get("SKERRY_DATA")
    path = Path(folder).expanduser() / file if folder else None
    return path if path is not None and os.path.isfile(path) else None


def read_archive(file: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in the frozen ``file``, one of ``ARCHIVES``, by name.

    Raises:
        DataError: ``$SKERRY_DATA`` is not set, or the file in it is missing or altered.
    """
    return _arrays(_frozen(file), "restore the original")


def read_made(name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the data set ``name``, by name: of the frozen file if it is there, else of ``fetch``'s.

    Raises:
        DataError: neither is on this machine, or it is altered.
    """
    return _arrays(made_file(name), f"remove it and {how_to_fetch(name)}")


def made_file(name: str) -> Path:
    """Return the file of the data set ``name``; see ``read_made``."""
    file = MADE[name]
    if frozen(file) is not None and file in ARCHIVES:
        return _frozen(file)
    path = cache_folder(name) / file
    if not os.path.isfile(path):
        raise DataError(f"data set {name!r} is not on this machine (looked for {path}); {how_to_fetch(name)}")
    return path


def _frozen(file: str) -> Path:
    folder = os.environ.get("SKERRY_DATA")
    if not folder:
        raise DataError(f"{file}: set SKERRY_DATA to the folder that holds it")
    path = Path(folder).expanduser() / file
    try:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; set SKERRY_DATA to the folder that holds {file}") from error
    expected = ARCHIVES[file]
    if got != expected:
        raise DataError(f"{path}: altered, sha256 {got[:12]}..., expected {expected[:12]}...; restore the original")
    return path


def _arrays(path: Path, remedy: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in ``path``, each of which has a checksum there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); {remedy}") from error
