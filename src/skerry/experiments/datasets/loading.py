"""Load a data set by name from files on this machine and verify it; ``fetch`` downloads the files.

Shapes and checksums are those of ``catalogue``, so two machines that load the same name hold the same bits.
"""

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skerry.choose import choose
from skerry.experiments.datasets.catalogue import CATALOGUE, FILES
from skerry.experiments.datasets.errors import DataError, OtherDatasetError
from skerry.experiments.datasets.idx import read_idx

Arrays = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory; models take ``(x / 255 - mean) / std``.

    Attributes:
        name: its name in the catalogue.
        x_train, x_test: uint8, samples first, e.g. (60000, 28, 28); writable, so torch can share their memory.
        y_train, y_test: class of each sample, int64.
        num_classes: number of classes.
        class_names: the name of each; empty if they have none.
        mean, std: over all values of x_train / 255.
    """

    name: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    num_classes: int
    class_names: tuple[str, ...]
    mean: float
    std: float


def load(name: str, folder: Path | None = None) -> Dataset:
    """Return the data set ``name``, verified, from the first place that holds all its files. Never downloads.

    Places, in this order: ``folder``, ``$SKERRY_DATA`` (for both, first the subfolder called ``name``, then the folder
    itself), and the cache that ``fetch`` fills. ``digits`` comes from scikit-learn instead.

    Args:
        name: "fashion-mnist", "mnist" or "digits".
        folder: holds the four IDX files with MNIST's names, plain or ``.gz``.

    Raises:
        ValueError: unknown name.
        DataError: no place holds all files, or a file is damaged or belongs to another data set.

    Example:
        >>> data = load("digits")
        >>> data.x_train.shape, data.x_test.shape
        ((1437, 8, 8), (360, 8, 8))
    """
    spec = CATALOGUE[choose(name, CATALOGUE, "data set")]
    if name == "digits":
        arrays = read_digits()
    else:
        places = _places(name, folder)
        complete = [place for place in places if not missing_files(place)]
        if not complete:
            looked = ", ".join(_describe(place) for place in places)
            raise DataError(
                f"data set {name!r} is not on this machine (looked in {looked}); run: skerry data fetch {name}"
            )
        arrays = read_folder(name, complete[0], remedy=f"remove it and run: skerry data fetch {name}")
    return Dataset(
        name=name,
        x_train=arrays["x_train"],
        y_train=arrays["y_train"].astype(np.int64),
        x_test=arrays["x_test"],
        y_test=arrays["y_test"].astype(np.int64),
        num_classes=spec.num_classes,
        class_names=spec.class_names,
        mean=spec.mean,
        std=spec.std,
    )


def cache_folder(name: str) -> Path:
    """Return the folder where ``fetch`` keeps the data set ``name``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "skerry" / name


def find_file(folder: Path, file: str) -> Path | None:
    """Return the path of ``file`` in ``folder``, plain before ``.gz``; None if neither exists."""
    # Unlike Path.is_file, os.path.isfile returns False in a folder that we may not enter.
    return next((path for path in (folder / file, folder / f"{file}.gz") if os.path.isfile(path)), None)


def missing_files(folder: Path) -> list[str]:
    """Return which of the four files ``folder`` has neither plain nor as ``.gz``."""
    return [file for file in FILES.values() if find_file(folder, file) is None]


def read_folder(name: str, folder: Path, remedy: str) -> Arrays:
    """Read and verify the four files of the data set ``name`` in ``folder``.

    Args:
        name: the data set.
        folder: where the files are.
        remedy: ends the message about a damaged file.

    Raises:
        DataError: a file is missing, damaged, or of another data set.
    """
    arrays: Arrays = {}
    for key, file in FILES.items():
        path = find_file(folder, file)
        if path is None:
            raise DataError(f"{folder}: no {file}, plain or .gz; expected the four files {', '.join(FILES.values())}")
        arrays[key] = read_file(name, key, path, remedy)
    return arrays


def read_file(name: str, key: str, path: Path, remedy: str) -> NDArray[np.uint8]:
    """Read one IDX file and verify that it is the array ``key`` ("x_train", ...) of the data set ``name``.

    Raises:
        OtherDatasetError: it is intact but belongs to another data set or another array.
        DataError: it is damaged or unknown.
    """
    try:
        array = read_idx(path)
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from error
    _verify(array, name, key, str(path), remedy)
    return array


def read_digits() -> Arrays:
    """Return scikit-learn's 8x8 digits as uint8 0..255, split 80/20 by a fixed permutation, verified.

    Raises:
        DataError: scikit-learn is not installed, or its digits are altered.
    """
    folder = scikit_learn_folder()
    if folder is None:
        raise DataError(
            "data set 'digits' comes with scikit-learn, which is not installed; run: pip install scikit-learn"
        )
    # Not load_digits: importing it takes each worker process longer than a short run does.
    file = folder / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file, expected scikit-learn's digits there; install scikit-learn 1.4 or later"
        )
    rows = np.loadtxt(file, dtype=np.int64, delimiter=",")
    x = ((rows[:, :-1] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8)  # 0..16 to 0..255, rounded
    y = rows[:, -1].astype(np.uint8)
    # RandomState, not Generator: numpy promises (NEP 19) that its stream never changes.
    order = np.random.RandomState(0).permutation(len(x))
    train, test = np.split(order, [len(x) * 4 // 5])
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    for key, array in arrays.items():
        remedy = "reinstall it: pip install --force-reinstall scikit-learn"
        _verify(array, "digits", key, f"scikit-learn's digits ({key})", remedy)
    return arrays


def scikit_learn_folder() -> Path | None:
    """Return where scikit-learn is installed, without importing it; None if it is not."""
    found = find_spec("sklearn")
    return Path(found.origin).parent if found is not None and found.origin is not None else None


def _verify(array: NDArray[np.uint8], name: str, key: str, where: str, remedy: str) -> None:
    """Raise DataError unless ``array`` has the shape and checksum of ``key`` of the data set ``name``."""
    expected = CATALOGUE[name].arrays[key]
    sha256 = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if array.shape == expected.shape and sha256 == expected.sha256:
        return
    for other, spec in CATALOGUE.items():
        for part, known in spec.arrays.items():
            if (known.sha256, known.shape) == (sha256, array.shape):
                raise OtherDatasetError(
                    f"{where}: this is {part} of data set {other!r}, expected {key} of {name!r} (file names are the "
                    "same); use another folder, or keep each data set in a subfolder of its name"
                )
    if array.shape != expected.shape:
        raise DataError(f"{where}: shape {array.shape}, expected {expected.shape} for {key} of {name!r}; {remedy}")
    raise DataError(
        f"{where}: altered, sha256 of its array {sha256[:12]}..., expected {expected.sha256[:12]}... "
        f"for {key} of {name!r}; {remedy}"
    )


def _places(name: str, folder: Path | None) -> list[Path]:
    roots = [folder] if folder is not None else []
    if os.environ.get("SKERRY_DATA"):
        roots.append(Path(os.environ["SKERRY_DATA"]).expanduser())
    return [place for root in roots for place in (root / name, root)] + [cache_folder(name)]


def _describe(place: Path) -> str:
    missing = missing_files(place)
    return str(place) if len(missing) == len(FILES) else f"{place}, which lacks {' and '.join(missing)}"
