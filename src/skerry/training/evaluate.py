"""Evaluation of a full model on held-out data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from skerry.model.inputs import Inputs, call, map_tensors, tensors_of
from skerry.training.worker import LossFn

SampleMetric = Callable[[Any, Any], Tensor]
"""``metric(what the model returns, y)``: a number for each sample, (B,); the mean over all samples is reported."""


@runtime_checkable
class MetricObject(Protocol):
    """A metric that keeps sums, as those of torchmetrics do; ``compute`` returns a scalar."""

    def reset(self) -> None:
        """Forget."""
        ...

    def update(self, output: Any, y: Any) -> None:
        """Take a batch."""
        ...

    def compute(self) -> Any:
        """Return the value over all batches since the last reset."""
        ...


Metric = SampleMetric | MetricObject


@dataclass(frozen=True)
class Score:
    """Mean loss and fraction of right answers over ``count`` samples; NaN where labels are no classes.

    ``metrics`` has the values of the metrics that were asked for, by name. ``probe_loss`` is the mean loss over the
    samples of a probe; None without one, or where the model returns something else than one tensor.
    """

    loss: float
    accuracy: float
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    probe_loss: float | None = field(default=None, compare=False)  # a probe changes nothing else

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
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Score:
    """Score ``model`` on ``test`` = (inputs, labels) in evaluation mode.

    A model of several inputs has them in a tuple or a dict, as in training.

    Accuracy is that of a classifier: the largest output against an integer label, (B, classes) against (B,).

    ``loss_fn`` must return the mean over its batch. ``total`` adds a tensor up over processes that each score a part.
    Where these must run the model equally often (``runtimes/streamed.py``), each makes ``num_batches`` runs, with
    ``example`` (an input) where its part has no more, which does not count. ``probe`` says, for each sample, whether
    its loss is wanted apart, too (bool).

    Raises:
        ValueError: the test set is empty; a metric returns something else than a number for each sample; or it keeps
            what cannot be added up over processes.
    """
    if not len(test[1]) and num_batches is None:
        raise ValueError("the test set is empty; pass test=None to train without one")
    metrics = metrics or {}
    keeping: dict[str, MetricObject] = {}
    plain: dict[str, SampleMetric] = {}
    for name, either in metrics.items():
        if isinstance(either, MetricObject):
            keeping[name] = either
        else:
            plain[name] = either
    for metric in keeping.values():
        metric.reset()
    classes = not test[1].is_floating_point() and test[1].dim() == 1
    was_training = model.training
    model.eval()
    sums = torch.zeros(5 + len(plain), dtype=torch.float64)
    for batch in range(-(-len(test[1]) // batch_size) if num_batches is None else num_batches):
        part = slice(batch * batch_size, (batch + 1) * batch_size)
        x, y = map_tensors(itemgetter(part), test[0]), test[1][part]
        output = call(model, x if len(y) or example is None else example)
        if not len(y):
            continue
        right = (next(tensors_of(output)).argmax(-1) == y).sum().item() if classes else math.nan
        found = [_sum_of(name, metric(output, y), len(y)) for name, metric in plain.items()]
        of_probe = [0.0, 0.0]
        if probe is not None and isinstance(output, Tensor):
            mask = probe[part].to(y.device)
            if num := int(mask.sum()):
                of_probe = [loss_fn(output[mask], y[mask]).item() * num, num]
        figures = [loss_fn(output, y).item() * len(y), right, len(y), *of_probe, *found]
        sums += torch.tensor(figures, dtype=torch.float64)
        for metric in keeping.values():
            metric.update(output, y)
    model.train(was_training)
    loss, right, count, probe_loss, in_probe, *found = total(sums).tolist()
    values = {name: value / count for name, value in zip(plain, found, strict=True)}
    for name, metric in keeping.items():
        _add_up_(name, metric, total)
        values[name] = float(metric.compute())
    probed = probe_loss / in_probe if in_probe else None
    return Score(loss / count, right / count, int(count), {name: values[name] for name in metrics}, probed)


def precision_at(k: int) -> SampleMetric:
    """Return P@k for several labels a sample: how many of the k largest outputs are labels, over k.

    ``y`` has the labels of a sample in a row, int64, -1 where there are no more.
    """

    def metric(output: Tensor, y: Tensor) -> Tensor:
        best = output.topk(k, dim=-1).indices
        return (best[:, :, None] == y[:, None, :]).any(-1).double().mean(-1)

    return metric


def _sum_of(name: str, values: Any, count: int) -> float:
    if not isinstance(values, Tensor) or values.shape != (count,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"metric '{name}' returned {got}, expected a number for each of {count} samples")
    return float(values.double().sum())


def _add_up_(name: str, metric: MetricObject, total: Callable[[Tensor], Tensor]) -> None:
    """Add what a metric keeps up over all processes."""
    if total(torch.ones(1)).item() == 1:
        return
    reductions = getattr(metric, "_reductions", {})
    for key, value in vars(metric).items():
        if key in reductions and (
            getattr(reductions[key], "__name__", "") != "dim_zero_sum" or not isinstance(value, Tensor)
        ):
            raise ValueError(
                f"metric '{name}' ({type(metric).__name__}) keeps '{key}', which cannot be added up over processes; "
                "give a function that returns a number for each sample"
            )
    if not reductions:
        raise ValueError(
            f"metric '{name}' ({type(metric).__name__}): what it keeps is not known; with several processes give a "
            "metric of torchmetrics, or a function that returns a number for each sample"
        )
    for key in reductions:
        setattr(metric, key, total(getattr(metric, key)))
