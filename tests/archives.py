"""Small archives with the names and arrays of the real ones."""

import hashlib

import numpy as np

from skerry.data.archives import ARCHIVES


def make(folder, monkeypatch):
    """Write them into ``folder`` and make recipes expect them there."""
    rng = np.random.default_rng(0)

    def rows(num, high, most):
        found = [rng.choice(high, size=1 + k % most, replace=False) for k in range(num)]
        return np.cumsum([0, *map(len, found)]), np.concatenate(found).astype(np.int32), np.array([num, high])

    x, y = rows(90, 40, 7), rows(90, 25, 4)
    arrays = {
        "speech_commands_12.npz": {
            "x": rng.integers(0, 256, (90, 16), dtype=np.uint8),
            "label": rng.integers(0, 12, 90).astype(np.uint8),
            "test": np.arange(90) % 3 == 0,
            "classes": np.array([f"word{k}" for k in range(12)]),
        },
        "debian_depends.npz": {
            **dict(zip(("x_indptr", "x_indices", "x_shape"), x, strict=True)),
            **dict(zip(("y_indptr", "y_indices", "y_shape"), y, strict=True)),
            "test": np.arange(90) % 3 == 0,
        },
    }  # fmt: skip
    for name, content in arrays.items():
        np.savez(folder / name, **content)
        monkeypatch.setitem(ARCHIVES, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    monkeypatch.setenv("SKERRY_DATA", str(folder))
    return arrays
