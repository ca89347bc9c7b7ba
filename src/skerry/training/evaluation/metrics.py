"""Metrics: numbers to report beside loss and accuracy, as functions or as objects that keep sums (torchmetrics)."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from skerry.model.device import wide
from skerry.training.evaluation.loss_terms import loss_terms

SampleMetric = Callable[[Any, Any], Tensor]
"""``metric(output, labels)``: one number per sample, (B,); the mean over all samples is reported."""


@runtime_checkable
class MetricObject(Protocol):
    """A metric that keeps sums, as those of torchmetrics do; ``compute`` returns a scalar."""

    def reset(self) -> None:
        """Set the sums to zero."""
        ...

    def update(self, output: Any, y: Any) -> None:
        """Add a batch to the sums."""
        ...

    def compute(self) -> Any:
        """Return the value over all batches since the last reset."""
        ...


Metric = SampleMetric | MetricObject


class Perplexity:
    """exp of the mean loss per token of the test set, for language models; labels of -100 do not count.

    Args:
        loss_fn: the mean loss per token of a batch: ``causal_lm_loss``, or one of all labels that are not -100.

    Example:
        >>> perplexity = Perplexity(torch.nn.functional.cross_entropy)
        >>> perplexity.update(torch.zeros(3, 8), torch.tensor([0, 1, 2]))
        >>> round(perplexity.compute(), 4)
        8.0
    """

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        self._loss_fn = loss_fn
        self._reductions = {"sums": dim_zero_sum}  # as torchmetrics says that processes may add them up
        self.reset()

    def reset(self) -> None:
        """Set the sums to zero."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, output: Any, y: Any) -> None:
        """Add a batch to the sums."""
        if num := int(loss_terms(self._loss_fn, y)):
            self.sums += torch.tensor([float(self._loss_fn(output, y)) * num, num], dtype=torch.float64)

    def compute(self) -> float:
        """Return the perplexity."""
        total, count = self.sums.tolist()
        return math.exp(min(total / count, 700.0)) if count else math.nan


def dim_zero_sum(values: Tensor) -> Tensor:
    """Return the sum over processes."""
    return values.sum(0)


def precision_at(k: int) -> SampleMetric:
    """Return P@k for samples with several labels: the fraction of the k largest outputs that are labels.

    The metric takes outputs (B, classes) and labels (B, most labels), int64, padded with -1.

    Example:
        >>> precision_at(2)(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[1, -1]]))
        tensor([0.5000], dtype=torch.float64)
    """

    def metric(output: Tensor, y: Tensor) -> Tensor:
        best = output.topk(k, dim=-1).indices
        return (best[:, :, None] == y[:, None, :]).any(-1).double().mean(-1)

    return metric


def sum_over_samples(name: str, values: Any, count: int) -> Tensor:
    """Return the sum of what a ``SampleMetric`` returned for ``count`` samples; ValueError if it has another shape."""
    if not isinstance(values, Tensor) or values.shape != (count,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"metric '{name}' returned {got}, expected a number for each of {count} samples")
    return values.to(wide(values)).sum()


def sum_over_processes_(name: str, metric: MetricObject, total: Callable[[Tensor], Tensor]) -> None:
    """Replace the sums that ``metric`` keeps by their sums over all processes.

    Raises:
        ValueError: with several processes, ``metric`` keeps something that cannot be summed.
    """
    if total(torch.ones(1)).item() == 1:
        return
    reductions = getattr(metric, "_reductions", {})
    if not reductions:
        raise ValueError(
            f"metric '{name}' ({type(metric).__name__}): what it keeps is not known; with several processes give a "
            "metric of torchmetrics, or a function that returns one number per sample"
        )
    for key, reduce in reductions.items():
        if getattr(reduce, "__name__", "") != "dim_zero_sum" or not isinstance(getattr(metric, key), Tensor):
            raise ValueError(
                f"metric '{name}' ({type(metric).__name__}) keeps '{key}', which cannot be summed over processes; "
                "give a function that returns one number per sample"
            )
    for key in reductions:
        setattr(metric, key, total(getattr(metric, key)))
