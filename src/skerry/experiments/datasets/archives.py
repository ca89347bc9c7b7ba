"""Data sets stored as one numpy archive each in ``$SKERRY_DATA``: verified, never downloaded."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skerry.experiments.datasets.errors import DataError

ARCHIVES = {
    "speech_commands_12.npz": "29a2890eb0451c7b7b6d47bf8a48447622c996412c1afae9422c31991b9d9165",
    "debian_depends.npz": "430c15e275675c650646bef9fc6b9c555417efc4fa2f930e51ead839efcac895",
    "cifar10_jpeg_train.npz": "4ac2eef288677d262afdf20645eb4b1adb79d765dc01bf9dde56a2049aad30ab",
    "cifar10_jpeg_test.npz": "d67bb56f69ad14aafe4ecd8c3255d2dbc658d64f9cfae6c1f5b2598c43cd59d4",
}
"""The sha256 of each file that recipes use."""


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification data set in memory.

    Attributes:
        x_train, x_test: uint8, samples first.
        y_train, y_test: class of each sample, int64.
        num_classes: number of classes.
        mean, std: of ``x_train / scale``, float32, in a shape that broadcasts over samples.
        scale: what stored values are divided by.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor
    scale: float = 1.0

    def standardize(self, x: Tensor) -> Tensor:
        """Return stored samples as floats with mean 0 and variance 1 over the training samples."""
        return (x.float() / self.scale - self.mean) / self.std


def read_archive(file: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in ``file``, one of ``ARCHIVES``, by name.

    Raises:
        DataError: ``$SKERRY_DATA`` is not set, or the file in it is missing or altered.
    """
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
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
