"""From a Dataset, Hugging Face's or torch's, or from a DataLoader a worker: python examples/own_dataset.py (seconds)

With Hugging Face's package (pip install datasets) the digits become one of its datasets here, and are read by the names
of columns; without it a plain list of dicts takes its place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import skerry


def with_columns(x: Tensor, y: Tensor) -> Any:
    """A dataset whose samples are dicts: {"pixels": (64,), "digit": ()}."""
    try:
        from datasets import Dataset
    except ImportError:
        return [{"pixels": pixels, "digit": digit} for pixels, digit in zip(x, y, strict=True)]
    return Dataset.from_dict({"pixels": x.tolist(), "digit": y.tolist()}).with_format("torch")


def sources(x: Tensor, y: Tensor) -> dict[str, skerry.training.Data]:
    """The same data for four workers, three times."""
    dataset = TensorDataset(x, y)
    own: Sequence[Tensor] = skerry.split(y, 4, "dirichlet:10", seed=0)
    return {
        "columns": skerry.from_dataset(
            with_columns(x, y), num_workers=4, batch_size=32, seed=0, inputs="pixels", label="digit"
        ),
        # Each worker sees another mix of classes. Samples are read when they are needed, by the worker's process only.
        "dataset": skerry.from_dataset(dataset, num_workers=4, batch_size=32, seed=0, split="dirichlet:10"),
        # Ordinary loaders, with all that they can do (processes that read ahead, samplers, drop_last).
        "loaders": skerry.from_loaders(
            [DataLoader(Subset(dataset, part.tolist()), batch_size=32, shuffle=True, drop_last=True) for part in own]
        ),
    }


def main() -> None:
    """Train a wide net on handwritten digits as four narrow ones."""
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16  # (1797, 64)
    y = torch.tensor(digits.target)[order]  # (1797,) int64
    for name, data in sources(x[:1400], y[:1400]).items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
        result = skerry.train(
            model, F.cross_entropy, data,
            plan=skerry.discover(model, x[:8]), algorithm=skerry.ist(workers=4, local_steps=20),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            num_rounds=20, schedule=skerry.cosine, test=(x[1400:], y[1400:]),
        )  # fmt: skip
        assert result.score is not None
        print(f"{name}: accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    main()
