"""Report metrics beside loss and accuracy, also torchmetrics': python examples/evaluation_metrics.py (no download)

A metric is a function that returns one number per sample, or an object with ``reset``, ``update`` and ``compute``, as
in torchmetrics (pip install torchmetrics). With one process per worker each process scores its part of the test set,
and the sums that a torchmetrics metric keeps are added up.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import skerry


class MacroRecall:
    """The mean over ten classes of the fraction of their samples that is found."""

    def reset(self) -> None:
        """Start anew."""
        self._found, self._all = torch.zeros(10), torch.zeros(10)

    def update(self, output: Tensor, y: Tensor) -> None:
        """Add a batch."""
        self._found += torch.bincount(y[output.argmax(1) == y], minlength=10)
        self._all += torch.bincount(y, minlength=10)

    def compute(self) -> Tensor:
        """Return the value for all batches since ``reset``."""
        return (self._found / self._all).mean()


def main() -> None:
    """Train a wide net on handwritten digits as four narrow ones."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    try:
        from torchmetrics.classification import MulticlassRecall

        recall = MulticlassRecall(10, average="macro")
    except ImportError:
        recall = MacroRecall()
    result = skerry.train(
        model, F.cross_entropy, skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=32, seed=0),
        plan=skerry.discover(model, x[:8]), algorithm=skerry.relay(workers=4, local_steps=20),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        num_rounds=10, schedule=skerry.cosine,
        test=skerry.training.Test(
            x_test, y_test, every=5,
            metrics={"recall": recall, "confidence": lambda output, y: output.softmax(1).amax(1)},
        ),
        callbacks=[skerry.callbacks.Progress()],
    )  # fmt: skip
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    main()
