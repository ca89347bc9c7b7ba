"""A residual network with batch norm, found out and dealt out by itself: SKERRY_DATA=... python examples/resnet_cifar.py

Trains an ordinary ResNet on 8,000 images of CIFAR-10 (JPEG) as four nets of a quarter of its width, in about a minute on
two cores. Expect about .55 of 1,000 test images right; chance is .10. Nothing in the model knows of Skerry.
"""

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry

try:
    from PIL import Image
except ImportError:
    raise SystemExit("this example decodes JPEG with Pillow; run: pip install pillow") from None


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


def resnet(widths: tuple[int, ...], classes: int) -> nn.Sequential:
    """A stem, one block a width, each but the first of half the image size, and a linear classifier."""
    stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip((widths[0], *widths), widths, strict=False)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def load(part: str, num: int) -> tuple[Tensor, Tensor]:
    """The first ``num`` images, (num, 3, 32, 32) in -1..1, and their classes, (num,) int64."""
    path = Path(os.environ.get("SKERRY_DATA", ".")) / f"cifar10_jpeg_{part}.npz"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; set SKERRY_DATA to the folder that has it (arrays jpeg, offset, label)")
    with np.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"]
    images = [np.array(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()))) for i in range(num)]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x / 127.5 - 1, torch.from_numpy(label[:num]).long()


def main() -> skerry.Result:
    """Discover, train, tell."""
    (x, y), test = load("train", 8000), load("test", 1000)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet((64, 128, 256), classes=10)
    plan = skerry.discover(model, x[:2])  # channels that are added in a shortcut are one axis
    print(plan)
    result = skerry.train(
        model, F.cross_entropy, skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=64, seed=0),
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=20, reshuffle=0.1),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        num_rounds=20, schedule=skerry.cosine, test=test, eval_every=5, calibration_samples=512,
        on_round=lambda record, state: print(f"round {record.round}: training loss {record.train_loss:.3f}", record.score or "", f"{record.totals['time_s']:.1f}"),
    )  # fmt: skip
    assert result.score is not None
    print(f"CIFAR-10 (JPEG): test accuracy {result.score.accuracy:.3f}, chance 0.1")
    return result


if __name__ == "__main__":
    main()
