"""Small archives with the names and arrays of the real ones."""

import hashlib
import io

import numpy as np
from PIL import Image

from skerry.experiments.datasets.archives import ARCHIVES


def cifar(num, seed):
    """Return an archive of ``num`` JPEG files, and their pixels, smooth, so that JPEG nearly keeps them."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (num, 3, 2, 2))
    slope = np.linspace(0, 1, 32)
    across = corners[..., :1] * (1 - slope) + corners[..., 1:] * slope
    pixels = across[:, :, 0, None] * (1 - slope[:, None]) + across[:, :, 1, None] * slope[:, None]
    files = []
    for image in pixels.round().astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=95, subsampling=0)
        files.append(file.getvalue())
    archive = {
        "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": (np.arange(num) % 10).astype(np.uint8),
    }
    return archive, pixels


def graph(num=60, num_classes=4):
    """Return a graph of communities, one per class, whose features tell the class, as its archives have it."""
    rng = np.random.default_rng(3)
    label = np.arange(num) % num_classes
    features = [np.array([y, num_classes + k % 6]) for k, y in enumerate(label)]
    ends = rng.integers(0, num // num_classes, (2, 3 * num)) * num_classes + rng.integers(0, num_classes, 3 * num)
    part = rng.integers(0, 3, num)
    part[:num_classes] = 0  # each class is in the training set
    masks = {name: part == k for k, name in enumerate(("train", "val", "test"))}
    return {
        "x_indptr": np.arange(0, 2 * num + 1, 2),
        "x_indices": np.concatenate(features),
        "x_shape": np.array([num, num_classes + 6]),
        "edges": np.unique(np.sort(ends, axis=0), axis=1),
        "label": label,
        "split": part,
        **masks,
    }


def make(folder, monkeypatch):
    """Write them into ``folder`` and make recipes expect them there, and an empty cache."""
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
        "cifar10_jpeg_train.npz": cifar(60, 1)[0],
        "cifar10_jpeg_test.npz": cifar(30, 2)[0],
    }  # fmt: skip
    for name, content in arrays.items():
        np.savez(folder / name, **content)
        monkeypatch.setitem(ARCHIVES, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    monkeypatch.setenv("SKERRY_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return arrays


def make_graphs(folder, monkeypatch):
    """Write those of graphs, all the same one, where ``fetch`` does, which other processes find as well."""
    monkeypatch.setenv("SKERRY_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    for name in ("cora", "citeseer", "wordnet"):
        (folder / "skerry" / name).mkdir(parents=True)
        np.savez(folder / "skerry" / name / f"{name}.npz", **graph())
