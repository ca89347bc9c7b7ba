"""Train a wide net on handwritten digits as four narrow ones: python examples/quickstart.py (seconds, no download)."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import skerry


def main() -> None:
    """Find a plan, train, score."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))

    # The plan says what can be dealt out: here the neurons of the hidden layer.
    plan = skerry.discover(model, x[:8])
    print(plan)

    # Four workers with a quarter of the training data each. After 20 local steps each hands its net to the next one.
    data = skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=32, seed=0)
    result = skerry.train(
        model, F.cross_entropy, data,
        plan=plan, algorithm=skerry.relay(workers=4, local_steps=20),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        num_rounds=30, schedule=skerry.cosine, test=skerry.training.Test(x_test, y_test, every=10),
        callbacks=[skerry.callbacks.Progress()],
    )  # fmt: skip
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.3f}")  # of result.model: four narrow nets side by side


if __name__ == "__main__":
    main()
