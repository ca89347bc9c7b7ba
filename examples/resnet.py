"""Train an unchanged ResNet with batch norm, with a discovered plan: python examples/resnet.py (no download)

Two workers train half of the channels each, on 8x8 images of handwritten digits. Seconds on two cores.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import skerry


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output added to its input, through a ReLU."""
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


def resnet(width: int) -> nn.Module:
    """Return a stem, two blocks, of which one doubles the channels on half the image size, and a linear classifier."""
    stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def main() -> None:
    """Find a plan, train, score."""
    torch.set_num_threads(1)  # nets this small gain little from more
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32").reshape(-1, 1, 8, 8) / 8 - 1
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x, y, random_state=0))
    torch.manual_seed(0)
    model = resnet(32)

    # The channels inside blocks are dealt out, so the residual stream stays whole. Without only(), all channels are
    # dealt out, and a relay is possible.
    plan = skerry.discover(model, x[:2]).only("1.*")
    print(plan)

    result = skerry.train(
        model, F.cross_entropy, skerry.Shards(x, y, skerry.split(y, 2, "iid", seed=0), batch_size=32, seed=0),
        plan=plan, algorithm=skerry.ist(workers=2, local_steps=10, optimizer_state="travel"),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        num_rounds=10, schedule=skerry.cosine, test=(x_test, y_test), calibration_samples=256,
        callbacks=[skerry.callbacks.Progress()],
    )  # fmt: skip
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.3f}")  # of result.model, the calibrated wide net


if __name__ == "__main__":
    main()
