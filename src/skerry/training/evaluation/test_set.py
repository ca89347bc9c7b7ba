"""A test set, with everything about evaluation on it: metrics, how often, and in which batches."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from skerry.model.in_words import OF_TORCH, described, first_line
from skerry.model.inputs import Inputs, tensors_of
from skerry.training.evaluation.metrics import Metric


@dataclass(frozen=True, eq=False)
class Test:
    """Held-out data, and how to evaluate on it. Where the defaults will do, a pair (inputs, labels) is enough.

    Every process has the same test set, of which it evaluates a part, or, with ``in_parts``, one of its own.

    Args:
        inputs: a tensor (num_samples, ...); a model of several inputs has a tuple or a dict of them.
        labels: (num_samples, ...), what the loss compares outputs with; classes are int64 of shape (num_samples,).
        metrics: what to report beside loss and accuracy, by name: functions of (output, labels) that return one number
            per sample, such as ``skerry.training.precision_at(5)``, or metrics of torchmetrics.
        every: rounds between the evaluations of ``train``; 0: only after the last round.
        batch_size: samples per forward of the full model. Where no process holds the full model, every forward gathers
            it once.
        in_parts: whether each process gives its own part, of any size but 0, because data may not move. The score is
            over all parts. Then there is no probe: ``Diagnosis`` has no ``dispersion``, ``subnet_loss`` and ``gap``.

    Raises:
        ValueError: inputs and labels are not tensors with the same number of rows, there are no samples, or a number
            is out of range.

    Example:
        >>> import torch
        >>> test = Test(torch.randn(100, 8), torch.zeros(100, dtype=torch.int64), every=10)
        >>> [round for round in range(1, 26) if test.is_due(round)]
        [10, 20]
    """

    inputs: Inputs
    labels: Tensor
    _: KW_ONLY
    metrics: Mapping[str, Metric] | None = None
    every: int = 0
    batch_size: int = 1024
    in_parts: bool = False
    __test__: ClassVar[bool] = False  # else pytest collects it where a user's test imports it

    def __post_init__(self) -> None:
        if isinstance(self.labels, Tensor) and not len(self.labels):
            raise ValueError("the test set is empty; pass test=None to train without one")
        tensors = isinstance(self.labels, Tensor)
        if not tensors or {t.shape[:1] for t in tensors_of(self.inputs)} != {self.labels.shape[:1]}:
            raise ValueError(
                f"test: got {type(self.inputs).__name__} and {type(self.labels).__name__}, expected tensors (inputs, "
                "labels) with the same number of rows; a model of several inputs has a tuple or a dict of them"
            )
        if self.every < 0 or self.batch_size < 1:
            raise ValueError(
                f"test: every={self.every}, batch_size={self.batch_size}; expected 0 or more rounds, at least 1 sample"
            )

    def is_due(self, num_done: int) -> bool:
        """Return whether ``train`` evaluates between rounds when ``num_done`` rounds are done."""
        return self.every > 0 and num_done % self.every == 0


def as_compared(test: Test | None) -> dict[str, object]:
    """Return by name what must be the same in all processes; of the data it compares the labels."""
    if test is None:
        return dict.fromkeys(("test set", "test.every", "test.batch_size", "test.metrics"))
    labels = test.labels.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return {
        "test set": "in parts" if test.in_parts else (tuple(test.labels.shape), zlib.crc32(labels)),
        "test.every": test.every,
        "test.batch_size": test.batch_size,
        "test.metrics": sorted(test.metrics or ()),
    }


@contextmanager
def named_as_test(inputs: Inputs, labels: Tensor) -> Iterator[None]:
    """Name the test set in torch's errors about wrong shapes, types and labels.

    Raises:
        ValueError: instead of such an error.
    """
    try:
        yield
    except Exception as error:
        if type(error) not in OF_TORCH:
            raise
        found = f"inputs {described(inputs)}, labels {described(labels)}"
        raise ValueError(f"test: {first_line(error)} ({found})") from error


def as_test(given: Any) -> Test | None:
    """Return ``given``, a ``Test``, a pair (inputs, labels) or None, as a ``Test``.

    Raises:
        ValueError: it is something else, or inputs and labels do not fit.
    """
    if given is None or isinstance(given, Test):
        return given
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(
            f"test: got {type(given).__name__}, expected a pair of tensors (inputs, labels) or skerry.training.Test"
        )
    return Test(*given)
