"""GraphSAGE of PyTorch Geometric on Cora, by a discovered plan: SKERRY_DATA=FOLDER python examples/pyg_sage.py

Four workers see the whole graph (2,708 papers, 1,433 words, 7 topics), but each only its own 35 of the 140 training
labels, and each trains a quarter of the neurons. Under a minute on two cores. Expect about .79 of 1,000 test papers
right, as one machine gets with all labels; always naming the most frequent topic would get .32.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
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
        x = F.dropout(x, 0.5, self.training)
        x = F.dropout(self.first(x, edge_index).relu(), 0.5, self.training)
        return self.second(x, edge_index)


class WholeGraph:
    """The data of all workers (``skerry.training.Data``): the whole graph, labels of a worker's own nodes, else -1."""

    def __init__(self, graph: Graph, labels: list[Tensor]) -> None:
        self.num_workers = len(labels)
        self._graph, self._labels = graph, labels

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Graph, Tensor]]:
        """The same at every step."""
        return ((self._graph, self._labels[worker]) for _ in range(num_steps))

    def sample(self, worker: int, num: int) -> Graph:
        """Inputs to check the plan with, and to calibrate batch norms with."""
        return self._graph


def load() -> tuple[Graph, Tensor, Tensor, Tensor]:
    """The graph, its edges in both directions; topics, (nodes,) int64; which nodes are for training, which for test."""
    path = Path(os.environ.get("SKERRY_DATA", ".")).expanduser() / "cora.npz"
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing; set SKERRY_DATA to the folder with it (x_* in CSR, edges, label, train, test)"
        )
    with np.load(path) as file:
        x = torch.zeros(*file["x_shape"].tolist())
        x[np.repeat(np.arange(len(x)), np.diff(file["x_indptr"])), file["x_indices"]] = 1
        edges, topics = torch.from_numpy(file["edges"]).long(), torch.from_numpy(file["label"]).long()
        train, test = (torch.from_numpy(file[part]).nonzero().flatten() for part in ("train", "test"))
    return (F.normalize(x, p=1), torch.cat([edges, edges.flip(0)], dim=1)), topics, train, test


def main() -> skerry.training.Result:
    """Discover, train, tell."""
    torch.set_num_threads(1)  # nets this small gain little from more
    graph, topics, train, test = load()
    own = [train[part] for part in skerry.split(topics[train], 4, "iid", seed=0)]
    labels = [torch.full_like(topics, -1).index_copy(0, nodes, topics[nodes]) for nodes in own]
    torch.manual_seed(0)
    model = SAGE(graph[0].shape[1], 256, 7)
    plan = skerry.discover(model, graph)
    print(plan)
    result = skerry.train(
        model, lambda output, y: F.cross_entropy(output, y, ignore_index=-1), WholeGraph(graph, labels),
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=5, optimizer_state="travel"),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=5e-4), num_rounds=12,
        on_round=lambda record, state: print(f"round {record.round}: training loss {record.train_loss:.3f}"),
    )  # fmt: skip
    with torch.no_grad():
        right = result.model(*graph).argmax(1)[test] == topics[test]  # result.model is in evaluation mode
    print(f"accuracy on {len(test)} test papers {right.float().mean():.3f}")
    return result


if __name__ == "__main__":
    main()
