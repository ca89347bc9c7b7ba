"""A ResNet with batch norm on CIFAR-10 (JPEG), by a discovered plan: SKERRY_DATA=FOLDER python examples/resnet_cifar.py

An ordinary ResNet, 8,000 images, two workers with half of all channels each. Half a minute on two cores.
Expect about .52 of 1,000 test images right; one machine with as many steps on all images gets .54, chance is .1.
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
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three blocks, of which two double the channels on half the image size, and a linear classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(width * a, width * b, b // a) for a, b in ((1, 1), (1, 2), (2, 4))))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))


def load(part: str, num: int) -> tuple[Tensor, Tensor]:
    """The first ``num`` images of "train" or "test", (num, 3, 32, 32) from -1 to 1, and their classes, (num,) int64."""
    path = Path(os.environ.get("SKERRY_DATA", ".")).expanduser() / f"cifar10_jpeg_{part}.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; set SKERRY_DATA to the folder with it (arrays jpeg, offset, label)")
    with np.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"]
    images = [np.array(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]]))) for i in range(num)]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x / 127.5 - 1, torch.from_numpy(label[:num]).long()


def main() -> skerry.training.Result:
    """Discover, train, tell."""
    torch.set_num_threads(1)  # nets this small gain little from more
    (x, y), test = load("train", 8000), load("test", 1000)
    torch.manual_seed(0)
    model = ResNet(32, classes=10)

    # Everything is dealt out, so subnets are nets of their own, and handed on from worker to worker. To deal out only
    # the insides of blocks, .only("blocks.?"): then all channels are dealt anew each round. It takes twice the time.
    plan = skerry.discover(model, x[:2])
    print(plan)

    result = skerry.train(
        model, F.cross_entropy, skerry.Shards(x, y, skerry.split(y, 2, "iid", seed=0), batch_size=32, seed=0),
        plan=plan, algorithm=skerry.ist(workers=2, local_steps=20, optimizer_state="travel"),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        num_rounds=40, schedule=skerry.cosine, test=test, calibration_samples=512,
        on_round=lambda record, state: print(f"round {record.round}: training loss {record.train_loss:.3f}"),
    )  # fmt: skip
    assert result.score is not None
    print(f"CIFAR-10 (JPEG) test accuracy {result.score.accuracy:.3f}")  # of result.model, the calibrated wide net
    return result


if __name__ == "__main__":
    main()
