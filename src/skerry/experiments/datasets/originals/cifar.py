"""CIFAR-10 from its official archive in binary form: the exact pixels.

Six files of 10,000 records, each a byte with the class and then 32x32 pixels of red, green and blue.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.official import CIFAR10, check, needed
from skerry.experiments.datasets.originals.unpack import members

FILES = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 1 + 3 * 32 * 32


def cifar10(source: Path | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``cifar10.npz``, ``x_train``, ``y_train``, ``x_test``, ``y_test``, from the archive.

    Raises:
        DataError: it is not the official archive.
    """
    check(source := needed("cifar10", source), CIFAR10)
    found = {name.rpartition("/")[2]: content for name, content in members(source, lambda name: name.endswith(".bin"))}
    arrays = {}
    for part, files in FILES.items():
        try:
            records = np.frombuffer(b"".join(found[file] for file in files), np.uint8).reshape(-1, RECORD)
        except (KeyError, ValueError) as error:
            raise DataError(f"{source}: no whole {part} set in it ({error})") from error
        arrays[f"x_{part}"], arrays[f"y_{part}"] = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
    return arrays
