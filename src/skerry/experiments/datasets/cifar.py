"""CIFAR-10 (JPEG): the images of CIFAR-10, stored as JPEG, so accuracies are not those of published tables."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skerry.experiments.datasets.archives import read_archive
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.sources import cache_folder
from skerry.files import atomic
from skerry.files.tensor_file import save_tensors

NAME = "CIFAR-10 (JPEG)"
_CACHE = "cifar10-jpeg"


@dataclass(frozen=True, eq=False)
class Cifar:
    """Images in memory, shuffled once, so that any prefix has about as many of each class.

    Attributes:
        x_train, x_test: uint8, (images, 3, 32, 32).
        y_train, y_test: classes, int64, (images,).
        num_classes: 10.
        mean, std: of each colour of x_train / 255, float32, (3, 1, 1).
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor

    def standardize(self, x: Tensor) -> Tensor:
        """Return stored images as floats of mean 0 and variance 1 over the training images, each colour for itself."""
        return (x.float() / 255 - self.mean) / self.std


def cifar10() -> Cifar:
    """Return CIFAR-10 (JPEG): 50,000 training and 10,000 test images of ten classes, re-encoded at JPEG quality 75.

    Decoding takes Pillow seconds, so the pixels are kept in the cache folder, with a checksum; several processes that
    begin together wait for the one that decodes.

    Raises:
        DataError: the files are not in ``$SKERRY_DATA``, or altered; Pillow is not installed; or the cache cannot be
            written.

    References: Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    x_train, y_train = _part("train")
    x_test, y_test = _part("test")
    # From counts of the 256 values of each colour: exact, and without a copy of all images as floats.
    counts = torch.stack([torch.bincount(x_train[:, c].flatten(), minlength=256) for c in range(3)]).double()
    values, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    mean = (counts @ values) / total
    std = ((counts @ values.square()) / total - mean.square()).sqrt()
    return Cifar(
        x_train, y_train, x_test, y_test,
        num_classes=10, mean=mean.float().view(3, 1, 1), std=std.float().view(3, 1, 1),
    )  # fmt: skip


def _part(part: str) -> tuple[Tensor, Tensor]:
    """Return the images of "train" or "test", uint8, and their classes."""
    archive = read_archive(f"cifar10_jpeg_{part}.npz")
    folder = cache_folder(_CACHE)
    path = folder / f"{part}.safetensors"
    of = hashlib.sha256(archive["jpeg"].data).hexdigest()  # what the cached pixels were decoded from
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "lock"):
            images = _cached(path, of)
            if images is None:
                images = _decode(archive["jpeg"], archive["offset"])
                kept, told = {"images": images}, {"of": of, "sha256": _sha256(images)}
                atomic.write_with(path, lambda draft: save_tensors(kept, draft, told))
    except OSError as error:
        raise DataError(
            f"{folder}: {NAME} decoded cannot be kept there ({error.strerror}); make room, or set XDG_CACHE_HOME to a "
            "folder that you may write to"
        ) from error
    return images, torch.from_numpy(archive["label"].astype(np.int64))


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process after the other in."""
    import fcntl  # not on Windows

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes, also by a kill
        yield


def _cached(path: Path, of: str) -> Tensor | None:
    """Return the pixels in ``path``; None where there are none, or damaged ones, or those of other files."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told, images = file.metadata() or {}, file.get_tensor("images")
    except SafetensorError:
        return None
    return images if (told.get("of"), told.get("sha256")) == (of, _sha256(images)) else None


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()


def _decode(jpeg: NDArray[np.uint8], offset: NDArray[np.int64]) -> Tensor:
    """Return the images of the JPEG files ``jpeg[offset[i]:offset[i + 1]]``, uint8, (images, 3, height, width)."""
    try:
        from PIL import Image  # an extra
    except ImportError as error:
        raise DataError(f"{NAME} is decoded by Pillow, which is not installed; run: pip install pillow") from error
    images: list[NDArray[Any]] = []
    for begin, end in pairwise(offset):
        with Image.open(io.BytesIO(jpeg[begin:end].tobytes())) as image:
            images.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
