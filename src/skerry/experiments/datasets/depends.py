"""Extreme classification on Debian's packages: from the words of a description to the packages it depends on."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.experiments.datasets.archives import read_archive


@dataclass(frozen=True, eq=False)
class Depends:
    """Samples in memory, rows filled up.

    Attributes:
        x_train, x_test: words, int64, (samples, most words): 1 .. num_words, 0 where there are no more.
        y_train, y_test: labels, int64, (samples, most labels): 0 .. num_labels - 1, -1 where there are no more.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_words: int
    num_labels: int


def debian_depends() -> Depends:
    """Return the task: 54,678 packages, 8,128 words, 17,860 labels, 4.7 labels a sample; our own, with a fixed split.

    Raises:
        DataError: the file is not in ``$SKERRY_DATA``, or altered.
    """
    arrays = read_archive("debian_depends.npz")
    x = _filled(arrays["x_indptr"], arrays["x_indices"].astype(np.int64) + 1, 0)
    y = _filled(arrays["y_indptr"], arrays["y_indices"].astype(np.int64), -1)
    test = torch.from_numpy(arrays["test"])
    num_words, num_labels = int(arrays["x_shape"][1]), int(arrays["y_shape"][1])
    return Depends(x[~test], y[~test], x[test], y[test], num_words, num_labels)


def most_frequent(task: Depends, num_labels: int) -> Depends:
    """Return ``task`` with only the labels that most training samples have, the most frequent first.

    Samples without any of them are left out. Of labels as frequent as each other the first count as more frequent.
    """
    if num_labels == task.num_labels:
        return task
    counts = task.y_train[task.y_train >= 0].bincount(minlength=task.num_labels)
    new = torch.full((task.num_labels + 1,), -1)  # the last one for the filler
    new[counts.argsort(descending=True, stable=True)[:num_labels]] = torch.arange(num_labels)

    def kept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = new[y]
        y = y.gather(1, (y < 0).long().argsort(dim=1, stable=True))  # fillers last
        some = y[:, 0] >= 0
        return x[some], y[some]

    (x_train, y_train), (x_test, y_test) = kept(task.x_train, task.y_train), kept(task.x_test, task.y_test)
    return replace(task, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, num_labels=num_labels)


def _filled(starts: NDArray[np.int64], values: NDArray[np.int64], filler: int) -> Tensor:
    """Turn rows of different lengths into a table."""
    lengths = np.diff(starts)
    table = np.full((len(lengths), lengths.max()), filler, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = values
    return torch.from_numpy(table)
