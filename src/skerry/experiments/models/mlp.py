"""Multi-layer perceptron with optional batch norm and dropout."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """``sizes[0] -> sizes[1] -> ... -> sizes[-1]`` with ReLU between; inputs are flattened from (B, ...)."""

    def __init__(self, sizes: Sequence[int], *, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        pairs = list(pairwise(sizes[:-1]))
        # Batch norm subtracts the mean, so a bias before it would have no effect.
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=not norm) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) if norm else nn.Identity() for _, b in pairs)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to (B, sizes[-1])."""
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(F.relu(norm(layer(x))))
        logits: Tensor = self.out(x)
        return logits
