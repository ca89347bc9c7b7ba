"""Train with a model, a loss and a DataLoader; the rest is found: python examples/one_loader.py (seconds, no download)

The loader is dealt to four workers. What was chosen for you is printed. Callbacks log each round, stop when nothing
gets better, and keep the best model in digits/best.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import skerry
from skerry.callbacks import BestCheckpoint, EarlyStopping, LogFile, Progress


def main() -> None:
    """Train on handwritten digits."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)

    result = skerry.train(
        model, F.cross_entropy, loader,
        num_rounds=40, test=skerry.training.Test(x_test, y_test, every=4),
        callbacks=[Progress(), LogFile("digits/log.csv"), EarlyStopping(3), BestCheckpoint("digits/best")],
    )  # fmt: skip
    print([round(record.score.accuracy, 3) for record in result.history if record.score])
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    main()
