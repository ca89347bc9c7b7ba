"""Train from a Dataset, torch's or Hugging Face's, or from one DataLoader per worker (seconds, no download).

    python examples/dataset_and_loaders.py

With Hugging Face's package (pip install datasets) the digits become one of its datasets here, whose columns are chosen
by name. Without it, a list of dicts takes its place.
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import skerry


def with_columns(x: Tensor, y: Tensor) -> Any:
    """Return a dataset whose samples are dicts: {"pixels": (64,), "digit": ()}."""
    try:
        from datasets import Dataset
    except ImportError:
        return [{"pixels": pixels, "digit": digit} for pixels, digit in zip(x, y, strict=True)]
    return Dataset.from_dict({"pixels": x.tolist(), "digit": y.tolist()}).with_format("torch")


def main() -> None:
    """Train on the same digits, read in three ways."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    dataset = TensorDataset(x, y)
    four = {"num_workers": 4, "batch_size": 32, "seed": 0}
    parts = [Subset(dataset, part.tolist()) for part in skerry.split(y, 4, "iid", seed=0)]
    sources: dict[str, skerry.training.Data] = {
        "columns": skerry.from_dataset(with_columns(x, y), **four, inputs="pixels", label="digit"),
        # Here each worker sees another mix of classes. Only the worker's process reads its samples, when it needs them.
        "dataset": skerry.from_dataset(dataset, **four, split="dirichlet:10"),
        # Ordinary loaders, with all their features: processes that read ahead, samplers, drop_last.
        "loaders": skerry.from_loaders([DataLoader(part, 32, shuffle=True, drop_last=True) for part in parts]),
    }
    for name, data in sources.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
        result = skerry.train(
            model, F.cross_entropy, data,
            plan=skerry.discover(model, x[:8]), algorithm=skerry.relay(workers=4, local_steps=20),
            optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
            num_rounds=20, schedule=skerry.cosine, test=(x_test, y_test),
        )  # fmt: skip
        assert result.score is not None
        print(f"{name}: accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    main()
