"""Extreme classification on Debian's packages: predict a package's dependencies from the words of its description."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.experiments.datasets.archives import read_made


@dataclass(frozen=True, eq=False)
class Depends:
    """Samples in memory, one padded row each.

    Attributes:
        x_train, x_test: words, int64, (samples, most words): 1 .. num_words, padded with 0.
        y_train, y_test: labels, int64, (samples, most labels): 0 .. num_labels - 1, padded with -1.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_words: int
    num_labels: int


def debian_depends() -> Depends:
    """Return our own task, with a fixed split, made from Debian's list of packages (``originals/debian.py``).

    The frozen one of the benchmarks has 54,678 packages, 8,128 words, 17,860 labels and 4.7 labels per sample. That of
    another list has about as many.

    Raises:
        DataError: ``fetch`` has not made it on this machine and ``$SKERRY_DATA`` has none, or the file is altered.
    """
    arrays = read_made("debian-depends")
    x = _padded(arrays["x_indptr"], arrays["x_indices"].astype(np.int64) + 1, 0)
    y = _padded(arrays["y_indptr"], arrays["y_indices"].astype(np.int64), -1)
    test = torch.from_numpy(arrays["test"])
    num_words, num_labels = int(arrays["x_shape"][1]), int(arrays["y_shape"][1])
    return Depends(x[~test], y[~test], x[test], y[test], num_words, num_labels)


def most_frequent(task: Depends, num_labels: int) -> Depends:
    """Return ``task`` with only the ``num_labels`` labels that are most frequent in training, most frequent first.

    Samples without any of them are dropped. Ties go to the label that comes first.
    """
    if num_labels == task.num_labels:
        return task
    counts = task.y_train[task.y_train >= 0].bincount(minlength=task.num_labels)
    new = torch.full((task.num_labels + 1,), -1)  # the last entry maps the padding
    new[counts.argsort(descending=True, stable=True)[:num_labels]] = torch.arange(num_labels)

    def kept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = new[y]
        y = y.gather(1, (y < 0).long().argsort(dim=1, stable=True))  # padding last
        some = y[:, 0] >= 0
        return x[some], y[some]

    (x_train, y_train), (x_test, y_test) = kept(task.x_train, task.y_train), kept(task.x_test, task.y_test)
    return replace(task, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, num_labels=num_labels)


def _padded(starts: NDArray[np.int64], values: NDArray[np.int64], padding: int) -> Tensor:
    """Return rows of different lengths as one padded table."""
    lengths = np.diff(starts)
    table = np.full((len(lengths), lengths.max()), padding, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = values
    return torch.from_numpy(table)
