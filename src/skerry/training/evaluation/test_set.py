"""A test set, with everything about evaluation on it: metrics, how often, and in which batches."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from skerry.choose import choose
from skerry.model.in_words import OF_TORCH, described, first_line
from skerry.model.inputs import Inputs, num_rows, stored, tensors_of
from skerry.training.evaluation.metrics import Metric

HeldBy = Literal["all", "one", "parts"]


@dataclass(frozen=True, eq=False)
class Test:
    """Held-out data, and how to evaluate on it. Where the defaults will do, a pair (inputs, labels) is enough.

    With several processes, ``held_by`` says which of them have it. The score is the same in all of them.

    Args:
        inputs: a tensor (num_samples, ...); a model of several inputs has a tuple or a dict of them.
        labels: (num_samples, ...), what the loss compares outputs with; classes are int64 of shape (num_samples,).
        metrics: what to report beside loss and accuracy, by name: functions of (output, labels) that return one number
            per sample, such as ``skerry.training.precision_at(5)``, or metrics of torchmetrics.
        every: rounds between the evaluations of ``train``; 0: only after the last round.
        batch_size: samples per forward of the full model. Where no process holds the full model, every forward gathers
            it once.
        held_by: ``"all"``: every process has the same test set, and evaluates an equal part of it. ``"one"``: one
            process has it and the others give ``test=None``; nothing of it is sent but shapes. ``"parts"``: each
            process has a part of its own, of any size but 0, and the score is over all parts. With ``"one"`` and
            ``"parts"`` there is no probe: ``Diagnosis`` has no ``dispersion``, ``subnet_loss`` and ``gap``.

    Raises:
        ValueError: inputs and labels are not tensors with the same number of rows, there are no samples, or a number
            is out of range.

    Example:
        >>> import torch
        >>> Test(torch.randn(100, 8), torch.zeros(100, dtype=torch.int64), every=10).batch_size
        1024
    """

    inputs: Inputs
    labels: Tensor
    _: KW_ONLY
    metrics: Mapping[str, Metric] | None = None
    every: int = 0
    batch_size: int = 1024
    held_by: HeldBy = "all"
    __test__: ClassVar[bool] = False  # else pytest collects it where a user's test imports it

    def __post_init__(self) -> None:
        if isinstance(self.labels, Tensor) and not len(self.labels):
            raise ValueError("the test set is empty; pass test=None to train without one")
        if not isinstance(self.labels, Tensor) or num_rows(self.inputs) != num_rows(self.labels):
            raise ValueError(
                f"test: got {type(self.inputs).__name__} and {type(self.labels).__name__}, expected tensors (inputs, "
                "labels) with the same number of rows; a model of several inputs has a tuple or a dict of them, and "
                "nodes of a graph skerry.graphs.Nodes"
            )
        if self.every < 0 or self.batch_size < 1:
            raise ValueError(
                f"test: every={self.every}, batch_size={self.batch_size}; expected 0 or more rounds, at least 1 sample"
            )
        choose(self.held_by, get_args(HeldBy), "test: held_by")


def as_compared(test: Test) -> dict[str, str]:
    """Return by name what must be the same in all processes; of inputs shapes and dtypes (``some_inputs``)."""
    settings = {"every": test.every, "batch_size": test.batch_size, "metrics": ", ".join(test.metrics or ())}
    if test.held_by == "all":
        labels = test.labels.detach().cpu().contiguous().view(torch.uint8).numpy().data
        settings["inputs"] = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors_of(test.inputs))
        settings["labels"] = f"{test.labels.dtype} {tuple(test.labels.shape)}, checksum {zlib.crc32(labels):x}"
    return {f"test.{name}": str(value) for name, value in settings.items()}


def some_inputs(test: Test) -> dict[str, list[float]]:
    """Return some values of each tensor of the inputs, evenly spaced."""
    some = {}
    for k, tensor in enumerate(stored(t)[0] for t in tensors_of(test.inputs)):
        tensor = tensor if tensor.dim() else tensor[None]
        flat = tensor[:: max(1, len(tensor) // 8)].detach().flatten()
        some[f"input {k} of the test set"] = flat[:: max(1, len(flat) // 64)].double().tolist()
    return some


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
            f"test: got {type(given).__name__}, expected a pair of tensors (inputs, labels) or skerry.training.Test; "
            "of a loader, for example: tuple(map(torch.cat, zip(*loader)))"
        )
    return Test(*given)
