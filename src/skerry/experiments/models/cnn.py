"""A small convolutional network: conv blocks, flatten, one dense layer, output."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class CNN(nn.Module):
    """3x3 convolutions with batch norm, ReLU and 2x2 max pooling, then a dense layer; images (B, C, size, size)."""

    def __init__(
        self, channels: Sequence[int], *, image_size: int, hidden: int, classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        side = image_size // 2 ** len(pairs)
        self.hidden = nn.Linear(channels[-1] * side * side, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, size, size) to (B, classes)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        logits: Tensor = self.out(self.dropout(F.relu(self.hidden(x.flatten(1)))))
        return logits
