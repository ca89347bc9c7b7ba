"""Train an unchanged GraphSAGE of PyTorch Geometric, with a discovered plan: python examples/pyg_graph_sage.py

The graph joins each handwritten digit to its nearest neighbours (no download). Four workers see the whole graph, but
each knows only 25 of the 100 training labels, and each trains a quarter of the neurons. Seconds on two cores. Needs
torch-geometric.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import skerry

try:
    from torch_geometric.data import Data
    from torch_geometric.nn import SAGEConv
except ImportError:
    raise SystemExit("this example needs PyTorch Geometric; run: pip install torch-geometric") from None


class SAGE(nn.Module):
    """Two layers of mean aggregation."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = SAGEConv(features, hidden)
        self.second = SAGEConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return logits of all nodes."""
        return self.second(F.dropout(self.first(x, edge_index).relu(), 0.5, self.training), edge_index)


def main() -> None:
    """Find a plan, train, score."""
    torch.set_num_threads(1)  # nets this small gain little from more
    x, digits = load_digits(return_X_y=True)
    x, digits = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(digits)
    near = torch.cdist(x, x).topk(6, largest=False).indices[:, 1:]  # without the node itself
    edge_index = torch.stack([near.flatten(), torch.arange(len(x)).repeat_interleave(5)])
    torch.manual_seed(0)
    train_mask = torch.zeros(len(x), dtype=torch.bool).index_fill(0, torch.randperm(len(x))[:100], True)
    graph = Data(x=x, edge_index=edge_index, y=digits, train_mask=train_mask, test_mask=~train_mask)
    model = SAGE(64, 256, 10)
    plan = skerry.discover(model, graph)
    print(plan)

    result = skerry.train(
        model, F.cross_entropy, skerry.graphs.whole(graph, num_workers=4, labels="split"),
        plan=plan, algorithm=skerry.relay(workers=4, local_steps=5, optimizer_state="travel"),
        optimizer=lambda net: torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4), num_rounds=12,
        test=skerry.graphs.Nodes(graph, "test_mask"), callbacks=[skerry.callbacks.Progress()],
    )  # fmt: skip
    print(f"accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    main()
