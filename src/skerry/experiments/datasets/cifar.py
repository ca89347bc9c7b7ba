"""CIFAR-10 with its exact pixels, and CIFAR-10 (JPEG), whose accuracies differ from published ones."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skerry.experiments.datasets.archives import Classification, read_archive, read_made
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.loading import cache_folder
from skerry.files import atomic
from skerry.files.tensor_file import save_tensors

NAME = "CIFAR-10 (JPEG)"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CACHE = "cifar10-jpeg"


def cifar10() -> Classification:
    """Return CIFAR-10: 50,000 training and 10,000 test images of ten classes, as published.

    Images are uint8, (images, 3, 32, 32), standardized per colour, in the published order, which is shuffled.

    Raises:
        DataError: ``fetch`` has not made it on this machine, or the file is altered.

    References: Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    arrays = {key: torch.from_numpy(array) for key, array in read_made("cifar10").items()}
    return _classification(arrays["x_train"], arrays["y_train"].long(), arrays["x_test"], arrays["y_test"].long())


def cifar10_jpeg() -> Classification:
    """Return CIFAR-10 (JPEG), the images re-encoded at JPEG quality 75, as the benchmarks use it.

    Images are as in ``cifar10``, shuffled once, so any prefix has about equally many of each class. Decoding takes
    seconds, so the pixels are cached with a checksum; of several processes that start together one decodes and the
    others wait.

    Raises:
        DataError: the files in ``$SKERRY_DATA`` are missing or altered; Pillow is not installed; or the cache cannot be
            written.
    """
    return _classification(*_part("train"), *_part("test"))


def _classification(x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> Classification:
    # From counts of the 256 values of each colour: exact, and without a float copy of all images.
    counts = torch.stack([torch.bincount(x_train[:, c].flatten(), minlength=256) for c in range(3)]).double()
    values, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    mean = (counts @ values) / total
    std = ((counts @ values.square()) / total - mean.square()).sqrt()
    return Classification(
        x_train, y_train, x_test, y_test, class_names=CLASSES,
        mean=mean.float().view(3, 1, 1), std=std.float().view(3, 1, 1), scale=255.0,
    )  # fmt: skip


def _part(part: str) -> tuple[Tensor, Tensor]:
    """Return the images of "train" or "test" and their classes."""
    archive = read_archive(f"cifar10_jpeg_{part}.npz")
    folder = cache_folder(_CACHE)
    path = folder / f"{part}.safetensors"
    source = hashlib.sha256(archive["jpeg"].data).hexdigest()  # what the cached pixels were decoded from
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            images = _cached(path, source)
            if images is None:
                images = _decode(archive["jpeg"], archive["offset"])
                metadata = {"of": source, "sha256": _sha256(images)}
                atomic.write_with(path, lambda draft: save_tensors({"images": images}, draft, metadata))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot cache the decoded {NAME} ({error.strerror}); make room, or set XDG_CACHE_HOME to a "
            "folder that you may write to"
        ) from error
    return images, torch.from_numpy(archive["label"].astype(np.int64))


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Let in one process at a time."""
    import fcntl  # not on Windows

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also by a kill
        yield


def _cached(path: Path, source: str) -> Tensor | None:
    """Return the pixels in ``path``; None if they are missing, damaged or decoded from other files."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, images = file.metadata() or {}, file.get_tensor("images")
    except SafetensorError:
        return None
    return images if (metadata.get("of"), metadata.get("sha256")) == (source, _sha256(images)) else None


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()


def _decode(jpeg: NDArray[np.uint8], offset: NDArray[np.int64]) -> Tensor:
    """Return the images of the JPEG files ``jpeg[offset[i]:offset[i + 1]]``, uint8, (images, 3, height, width)."""
    try:
        from PIL import Image  # an extra
    except ImportError as error:
        raise DataError(f"{NAME} needs Pillow to decode it; run: pip install pillow") from error
    images: list[NDArray[Any]] = []
    for begin, end in pairwise(offset):
        with Image.open(io.BytesIO(jpeg[begin:end].tobytes())) as image:
            images.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
