"""The score of a model on held-out data: mean loss, accuracy and other metrics."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.model.class_labels import are_classes, has_label
from skerry.model.inputs import Inputs, call, take, tensors_of, to
from skerry.training.evaluation.loss_terms import loss_terms
from skerry.training.evaluation.metrics import (
    Metric,
    MetricObject,
    sum_over_processes_,
    sum_over_samples,
)
from skerry.training.worker import LossFn


@dataclass(frozen=True)
class Score:
    """The score of a model on a test set.

    Attributes:
        loss: mean over the samples; where each has many labels, over those that are not -100.
        accuracy: fraction of samples whose largest output is at their label; NaN where labels are not classes.
        count: number of samples.
        metrics: the values of further metrics by name.
        probe_loss: mean loss over the probe's samples (docs/your-run.md); None without a probe, or where the model
            does not return a single tensor.
    """

    loss: float
    accuracy: float
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    probe_loss: float | None = field(default=None, compare=False)  # scores with and without a probe are equal

    def __str__(self) -> str:
        accuracy = {} if math.isnan(self.accuracy) else {"accuracy": self.accuracy}
        rest = "".join(f", {name} {value:.4f}" for name, value in (accuracy | dict(self.metrics)).items())
        return f"loss {self.loss:.4f}{rest} ({self.count} samples)"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss_fn: LossFn,
    test: tuple[Inputs, Tensor],
    *,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 1024,
    num_batches: int | None = None,
    example: Inputs | None = None,
    probe: Tensor | None = None,
    device: torch.device | None = None,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Score:
    """Score ``model`` on a test set in evaluation mode.

    With samples (x_i, y_i), i = 1 .. N, and outputs f(x_i): loss = (1/N) sum_i loss_fn(f(x_i), y_i), and accuracy =
    (1/N) sum_i [argmax_c f_c(x_i) = y_i] where labels are classes, (N,) integers. Samples with a class below 0 have no
    label: they do not count, in metrics neither. Where each sample has many whole numbers as labels (tokens), the loss
    is the mean over those that are not -100.

    Several processes may each score a part of the test set. Where all of them must run the model equally often
    (``runtimes/streamed.py``), each runs it ``num_batches`` times.

    Args:
        model: takes inputs as in training; its training mode is restored afterwards.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        test: (inputs, labels), this process's part; a model of several inputs has a tuple or a dict of them.
        metrics: what else to report, by name; see ``Test``.
        batch_size: samples per forward.
        num_batches: number of forwards; None: enough for all samples.
        example: inputs of one sample, to run the model on when the samples are used up; its output is not counted.
        probe: (num_samples,) bool, the samples whose mean loss is reported as ``Score.probe_loss``, too.
        device: where the model is; a batch at a time is moved there. None: batches stay where they are.
        total: sums a tensor over all processes.

    Raises:
        ValueError: the test set is empty or no label counts, a function among the metrics does not return one number
            per sample, or a metric keeps something that cannot be summed over processes.

    Example:
        >>> model = nn.Linear(8, 2)
        >>> evaluate(model, nn.functional.cross_entropy, (torch.randn(5, 8), torch.zeros(5, dtype=torch.int64))).count
        5
    """
    inputs, labels = test
    if not len(labels) and num_batches is None:
        raise ValueError("the test set is empty; pass test=None to train without one")
    classes, known = are_classes(labels), has_label(labels)
    without = not bool(known.all())
    if without and num_batches is None and not bool(known.any()):
        raise ValueError("test: all labels are below 0, which is no class; expected some from 0 on")
    sums = _Sums(loss_fn, metrics or {}, classes=classes, without=without)
    was_training = model.training
    model.eval()
    for batch in range(-(-len(labels) // batch_size) if num_batches is None else num_batches):
        part = slice(batch * batch_size, (batch + 1) * batch_size)
        x, y = take(inputs, part), labels[part]
        x = x if len(y) or example is None else example
        if device is not None:
            x, y = to((x, y), device)
        output = call(model, x)
        if len(y):
            sums.add(output, y, None if probe is None else probe[part])
    model.train(was_training)
    return sums.score(total)


class _Sums:
    """Sums of loss, right answers and metrics over the batches of this process."""

    def __init__(self, loss_fn: LossFn, metrics: Mapping[str, Metric], *, classes: bool, without: bool) -> None:
        self._loss_fn, self._names, self._classes, self._without = loss_fn, list(metrics), classes, without
        self._objects = {name: metric for name, metric in metrics.items() if isinstance(metric, MetricObject)}
        self._functions = {name: metric for name, metric in metrics.items() if not isinstance(metric, MetricObject)}
        for metric in self._objects.values():
            metric.reset()
        self._rows: list[tuple[list[Tensor], int]] = []  # figures of each batch, and its number of samples

    def add(self, output: Any, y: Tensor, probe: Tensor | None) -> None:
        """Add a batch; ``probe``: bool, on the CPU, which of its samples are in the probe."""
        if self._without and isinstance(output, Tensor) and output.dim() == 2:
            kept = has_label(y).nonzero().flatten()
            output, y, probe = output[kept], y[kept], None if probe is None else probe[kept.cpu()]
            if not len(y):
                return
        none = torch.zeros((), device=y.device)
        right = (next(tensors_of(output)).argmax(-1) == y).sum() if self._classes else none * math.nan
        found = [sum_over_samples(name, metric(output, y), len(y)) for name, metric in self._functions.items()]
        probed = [none, none]
        if probe is not None and isinstance(output, Tensor) and bool(probe.any()):
            picked = probe.nonzero().flatten().to(y.device)
            probed = self._loss(output[picked], y[picked])
        # They are looked at after the last batch, so that the host does not wait for the device.
        self._rows.append(([*self._loss(output, y), *probed, right, *found], len(y)))
        for metric in self._objects.values():
            metric.update(output, y)

    def _loss(self, output: Any, y: Tensor) -> list[Tensor]:
        """Return the mean loss and its number of terms."""
        return [self._loss_fn(output, y), loss_terms(self._loss_fn, y)]

    def score(self, total: Callable[[Tensor], Tensor]) -> Score:
        """Return the score over all processes."""
        sums = torch.zeros(6 + len(self._functions), dtype=torch.float64)
        for figures, count in self._rows:
            loss, terms, probe_loss, num, *others = (float(figure) for figure in figures)
            loss, probe_loss = (mean * n if n else 0.0 for mean, n in ((loss, terms), (probe_loss, num)))
            sums += torch.tensor([loss, terms, probe_loss, num, count, *others], dtype=torch.float64)
        loss, terms, probe_loss, num, count, right, *found = total(sums).tolist()
        if not terms:
            raise ValueError("test: all labels are -100, which no loss counts; expected some that are tokens")
        values = {name: value / count for name, value in zip(self._functions, found, strict=True)}
        for name, metric in self._objects.items():
            sum_over_processes_(name, metric, total)
            values[name] = float(metric.compute())
        in_order = {name: values[name] for name in self._names}
        return Score(loss / terms, right / count, int(count), in_order, probe_loss / num if num else None)
