"""Data sets that are one numpy archive each, read from ``$SKERRY_DATA``: verified, never downloaded."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError

ARCHIVES: Mapping[str, str] = {
    "speech_commands_12.npz": "29a2890eb0451c7b7b6d47bf8a48447622c996412c1afae9422c31991b9d9165",
    "debian_depends.npz": "430c15e275675c650646bef9fc6b9c555417efc4fa2f930e51ead839efcac895",
    "cifar10_jpeg_train.npz": "4ac2eef288677d262afdf20645eb4b1adb79d765dc01bf9dde56a2049aad30ab",
    "cifar10_jpeg_test.npz": "d67bb56f69ad14aafe4ecd8c3255d2dbc658d64f9cfae6c1f5b2598c43cd59d4",
}
"""The files that recipes know, and the sha256 of each."""


def read_archive(file: str, archives: Mapping[str, str] = ARCHIVES) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``file`` by name.

    Args:
        file: its name in the folder ``$SKERRY_DATA``.
        archives: what each file must be; only tests pass another.

    Raises:
        DataError: the variable is not set, or the file is missing or altered.
    """
    folder = os.environ.get("SKERRY_DATA")
    if not folder:
        raise DataError(f"{file}: set SKERRY_DATA to the folder that holds it")
    path = Path(folder).expanduser() / file
    try:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; set SKERRY_DATA to the folder that holds {file}") from error
    if got != archives[file]:
        raise DataError(
            f"{path}: altered, sha256 {got[:12]}..., expected {archives[file][:12]}...; put the original back"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
