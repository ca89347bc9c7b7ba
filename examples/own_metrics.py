"""Metrics beside loss and accuracy, torchmetrics' among them: python examples/own_metrics.py (seconds, no download)

A metric is a function that returns a number for each sample, or an object with ``reset``, ``update`` and ``compute``:
every metric of torchmetrics (pip install torchmetrics; without it a class of a few lines takes its place here). With
one process a worker each scores its part, and what torchmetrics keeps as sums is added up.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.training import Test
from skerry.training.evaluation.metrics import MetricObject


class MacroRecall:
    """The mean over classes of the fraction of their samples that is found."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget."""
        self._found, self._all = torch.zeros(self._num_classes), torch.zeros(self._num_classes)

    def update(self, output: Tensor, y: Tensor) -> None:
        """Take a batch."""
        self._found += torch.bincount(y[output.argmax(1) == y], minlength=self._num_classes)
        self._all += torch.bincount(y, minlength=self._num_classes)

    def compute(self) -> Tensor:
        """Return it."""
        return (self._found / self._all).mean()


def macro_recall(num_classes: int) -> MetricObject:
    """That of torchmetrics where it is installed."""
    try:
        from torchmetrics.classification import MulticlassRecall
    except ImportError:
        return MacroRecall(num_classes)
    return MulticlassRecall(num_classes, average="macro")


def main() -> skerry.training.Result:
    """Train a wide net on handwritten digits as four narrow ones."""
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16  # (1797, 64)
    y = torch.tensor(digits.target)[order]  # (1797,) int64
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    result = skerry.train(
        model, F.cross_entropy, skerry.Shards(x[:1400], y[:1400], skerry.split(y[:1400], 4, "iid", seed=0),
                                              batch_size=32, seed=0),
        plan=skerry.discover(model, x[:8]), algorithm=skerry.ist(workers=4, local_steps=20),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        num_rounds=20, schedule=skerry.cosine,
        test=Test(x[1400:], y[1400:], every=10, metrics={
            "recall": macro_recall(10),
            "confidence": lambda output, y: output.softmax(1).amax(1),  # one number per sample
        }),
        on_round=lambda record, state: print(record.round, record.score) if record.score else None,
    )  # fmt: skip
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.3f}")
    return result


if __name__ == "__main__":
    main()
