"""VGG: stages of 3x3 convolutions with batch norm, each followed by 2x2 max pooling, then dense layers."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class VGG(nn.Module):
    """Images (B, 3, size, size) through ``sum(convs)`` convolutions and one hidden dense layer.

    Args:
        convs: number of convolutions of each stage; stage k has ``2**k * width`` channels.
        width: channels of the first stage.
        hidden: units of the dense layer.
        image_size: a multiple of ``2**len(convs)``: each stage ends with 2x2 pooling.
        classes: number of logits.

    References: Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
    arXiv 1409.1556, table 1; smaller, and with batch norm.
    """

    def __init__(self, convs: Sequence[int], *, width: int, hidden: int, image_size: int, classes: int) -> None:
        super().__init__()
        channels = [3, *(2**k * width for k, num in enumerate(convs) for _ in range(num))]
        self.pooled = {sum(convs[: k + 1]) - 1 for k in range(len(convs))}  # the last convolution of each stage
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in channels[1:])
        side = image_size // 2 ** len(convs)
        self.hidden = nn.Linear(channels[-1] * side * side, hidden, bias=False)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, size, size) to (B, classes)."""
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if k in self.pooled:
                x = F.max_pool2d(x, 2)
        x = F.relu(self.hidden_norm(self.hidden(x.flatten(1))))
        logits: Tensor = self.out(x)
        return logits
