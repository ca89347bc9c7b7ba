"""Train an unchanged GraphSAGE of PyTorch Geometric, with a discovered plan: python examples/pyg_graph_sage.py

The graph joins each handwritten digit to its nearest neighbours (no download). Four workers see the whole graph, but
each knows only 25 of the 100 training labels, and each trains a quarter of the neurons. Seconds on two cores. Needs
torch-geometric.
"""

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import skerry

try:
    from torch_geometric.nn import SAGEConv
except ImportError:
    raise SystemExit("this example needs PyTorch Geometric; run: pip install torch-geometric") from None

Graph = tuple[Tensor, Tensor]  # x (nodes, features), edge_index (2, edges)


class SAGE(nn.Module):
    """Two layers of mean aggregation."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = SAGEConv(features, hidden)
        self.second = SAGEConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return logits of all nodes."""
        return self.second(F.dropout(self.first(x, edge_index).relu(), 0.5, self.training), edge_index)


class WholeGraph:
    """The data of all workers (``skerry.training.Data``): the whole graph; a worker's own labels, and -1 elsewhere."""

    def __init__(self, graph: Graph, labels: list[Tensor]) -> None:
        self.num_workers = len(labels)
        self._graph, self._labels = graph, labels

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Graph, Tensor]]:
        """Return the same batch for every step."""
        return ((self._graph, self._labels[worker]) for _ in range(num_steps))

    def sample(self, worker: int, num: int) -> Graph:
        """Return inputs to check the plan with, and to calibrate batch norms with."""
        return self._graph


def main() -> None:
    """Find a plan, train, score."""
    torch.set_num_threads(1)  # nets this small gain little from more
    x, digits = load_digits(return_X_y=True)
    x, digits = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(digits)
    near = torch.cdist(x, x).topk(6, largest=False).indices[:, 1:]  # without the node itself
    graph = x, torch.stack([near.flatten(), torch.arange(len(x)).repeat_interleave(5)])
    torch.manual_seed(0)
    train, test = torch.randperm(len(x)).tensor_split([100])
    own = [train[part] for part in skerry.split(digits[train], 4, "iid", seed=0)]
    labels = [torch.full_like(digits, -1).index_copy(0, nodes, digits[nodes]) for nodes in own]
    model = SAGE(64, 256, 10)
    plan = skerry.discover(model, graph)
    print(plan)

    result = skerry.train(
        model, lambda output, y: F.cross_entropy(output, y, ignore_index=-1), WholeGraph(graph, labels),
        plan=plan, algorithm=skerry.relay(workers=4, local_steps=5, optimizer_state="travel"),
        optimizer=lambda net: torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4), num_rounds=12,
        callbacks=[skerry.callbacks.Progress()],
    )  # fmt: skip
    with torch.no_grad():
        right = result.model(*graph).argmax(1)[test] == digits[test]  # result.model is in evaluation mode
    print(f"accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
