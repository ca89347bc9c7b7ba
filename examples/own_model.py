"""Your own model, your own data, one page of code: python examples/own_model.py (a few seconds, no download)."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import skerry


def main() -> skerry.training.Result:
    """Train a wide net on handwritten digits as four narrow ones."""
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16  # (1797, 64)
    y = torch.tensor(digits.target)[order]  # (1797,) int64
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))

    # What can be dealt out of it: here the hidden layer's neurons.
    plan = skerry.discover(model, x[:8])
    print(plan)

    # Four workers, each with a quarter of the training data; 20 local steps between exchanges.
    data = skerry.Shards(x[:1400], y[:1400], skerry.split(y[:1400], 4, "iid", seed=0), batch_size=32, seed=0)
    result = skerry.train(
        model, F.cross_entropy, data,
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=20),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        num_rounds=30, schedule=skerry.cosine,
        test=skerry.training.Test(x[1400:], y[1400:], every=10),
        on_round=lambda record, state: print(record.round, record.score) if record.score else None,
    )  # fmt: skip
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.3f}")  # of result.model, the calibrated wide net
    return result


if __name__ == "__main__":
    main()
