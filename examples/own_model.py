"""Your own model, your own data, one page of code: python examples/own_model.py (a few seconds, no download)."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import skerry


def main() -> skerry.Result:
    """Train a wide net on handwritten digits as four narrow ones."""
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))

    # Which modules make the units that are dealt out, and which read them.
    plan = skerry.Plan.from_rules(
        model, {"0": skerry.Out("hidden"), "1": skerry.Out("hidden"), "3": skerry.In("hidden")}
    )
    print(plan)

    # Four workers, each with a quarter of the training data; 20 local steps between exchanges.
    data = skerry.Shards(x[:1400], y[:1400], skerry.split(y[:1400], 4, "iid", seed=0), batch_size=32, seed=0)
    result = skerry.train(
        model, F.cross_entropy, data,
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=20),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        num_rounds=30, schedule=skerry.cosine, test=(x[1400:], y[1400:]),
    )  # fmt: skip
    print(
        f"accuracy {result.score.accuracy:.3f}, loss {result.score.loss:.3f}; result.model is the calibrated full net"
    )
    return result


if __name__ == "__main__":
    main()
