"""Graph networks of PyTorch Geometric's layers."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class GraphNet(nn.Module):
    """Layers of messages, each but the last followed by an activation and dropout.

    Args:
        convs: layers of PyTorch Geometric.
        dropout: between layers, while training.
        first: a layer of each node by itself before them; None: none.
    """

    def __init__(self, convs: Sequence[nn.Module], dropout: float, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.convs, self.dropout = first, nn.ModuleList(convs), dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Map (nodes, features), also a sparse matrix (CSR), to (nodes, classes)."""
        if self.first is not None:
            x = self._between(F.relu(self.first(x)))
        for conv in self.convs[:-1]:
            x = self._between(F.elu(conv(x, edge_index)))
        logits: Tensor = self.convs[-1](x, edge_index)
        return logits

    def _between(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
