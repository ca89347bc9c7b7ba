"""Counts of the labels that workers train on, for their label skew."""

from typing import Any

import torch
from torch import Tensor

from skerry.runtimes.runtime import Runtime
from skerry.training.diagnosis.measures import label_skew
from skerry.training.worker import Worker

MAX_CLASSES = 4096


class LabelCounts:
    """How often each worker of this process had each label."""

    def __init__(self) -> None:
        self._labels: dict[int, list[Tensor]] = {}

    def add(self, worker: Worker, labels: Any) -> None:
        """Note the labels of a step, if they are classes: (B,) integers. Nothing is counted before ``skew``."""
        if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point():
            self._labels.setdefault(worker.number, []).append(labels.detach().clone())

    def skew(self, runtime: Runtime, num_workers: int) -> float | None:
        """Return the mean label skew of all workers; None unless all of them have labels that are classes."""
        own = [counts for counts in map(_counts, self._labels.values()) if counts.any()]
        none = torch.zeros(MAX_CLASSES + 1, dtype=torch.float64)
        # The number of workers with labels, and the sum of their label frequencies.
        sums = runtime.total(sum((torch.cat([torch.ones(1), counts / counts.sum()]) for counts in own), none))
        skews = [label_skew(counts, sums[1:] / num_workers) for counts in own]
        skew = float(runtime.total(torch.tensor(sum(skews), dtype=torch.float64))) / num_workers
        return skew if int(sums[0]) == num_workers else None


def _counts(labels: list[Tensor]) -> Tensor:
    """Count labels from 0 to below ``MAX_CLASSES``."""
    found = torch.cat(labels).cpu().long()
    return found[(found >= 0) & (found < MAX_CLASSES)].bincount(minlength=MAX_CLASSES)
