"""Two tiny data sets with the names and files of the real ones, and a catalogue that expects them.

Nothing in this folder's tests uses the network, a real cache or a real ``$SKERRY_DATA``.
"""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from skerry.experiments.datasets.catalogue import CATALOGUE, FILES, ArraySpec, DatasetSpec
from skerry.experiments.datasets.idx import write_idx

Arrays = dict[str, NDArray[np.uint8]]
Put = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    monkeypatch.delenv("SKERRY_DATA", raising=False)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Arrays]:
    """Return the arrays of both tiny data sets."""
    rng = np.random.default_rng(0)
    shapes = {"x_train": (12, 4, 4), "y_train": (12,), "x_test": (6, 4, 4), "y_test": (6,)}

    def arrays() -> Arrays:
        return {key: rng.integers(0, 256, shape, dtype=np.uint8) for key, shape in shapes.items()}

    return {"fashion-mnist": arrays(), "mnist": arrays()}


@pytest.fixture(autouse=True)
def _expects_tiny_sets(tiny: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arrays in tiny.items():
        specs = {
            key: ArraySpec(array.shape, hashlib.sha256(array.tobytes()).hexdigest()) for key, array in arrays.items()
        }
        monkeypatch.setitem(CATALOGUE, name, DatasetSpec(num_classes=10, mean=0.5, std=0.25, arrays=specs))


@pytest.fixture
def put(tiny: dict[str, Arrays]) -> Put:
    """Return put(name, folder, gz=False): writes the four files of a tiny data set."""

    def put(name: str, folder: Path, gz: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for key, file in FILES.items():
            write_idx(folder / file, tiny[name][key])
            if gz:
                (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
                (folder / file).unlink()
        return folder

    return put
