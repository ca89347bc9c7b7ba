"""GraphSAGE of PyTorch Geometric, dealt out over four workers: SKERRY_DATA=... python examples/pyg_sage.py

Every worker sees the whole citation graph (Cora: 2,708 papers, 1,433 words, 7 topics) but only its own 35 of the 140
labels, and trains a net of a quarter of the width. Expect about .80 of the 1,000 test papers right; always naming the most
common topic gives .32. Takes a few seconds.
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


class SAGE(nn.Module):
    """Two layers of mean aggregation."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = SAGEConv(inputs, hidden)
        self.second = SAGEConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        x = F.dropout(self.first(x, edge_index).relu(), 0.5, self.training)
        return self.second(x, edge_index)


class OwnLabels:
    """The whole graph for everybody; labels (-1: not told) only of a worker's own nodes. A ``skerry.Data``."""

    def __init__(self, inputs: tuple[Tensor, Tensor], label: Tensor, parts: list[Tensor]) -> None:
        self.num_workers = len(parts)
        self.inputs, self.label, self.parts = inputs, label, parts

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        """The same full batch at every step."""
        y = torch.full_like(self.label, -1)
        y[self.parts[worker]] = self.label[self.parts[worker]]
        return (batch for batch in [(self.inputs, y)] * num_steps)

    def sample(self, worker: int, num: int) -> tuple[Tensor, Tensor]:
        """Inputs to try the plan with, and to calibrate batch norm, where there is one."""
        return self.inputs


def load() -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Words (2708, 1433) float32, each row of sum 1; edges in both directions (2, 10556); topics; the split."""
    path = Path(os.environ.get("SKERRY_DATA", ".")) / "cora.npz"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; set SKERRY_DATA to the folder that has it")
    with np.load(path) as file:
        print({k:(file[k].shape,file[k].dtype) for k in file})
        num_nodes, num_words = file["x_shape"].tolist()
        x = torch.zeros(num_nodes, num_words)
        rows = np.repeat(np.arange(num_nodes), np.diff(file["x_indptr"]))
        x[rows, file["x_indices"]] = 1
        edges = torch.from_numpy(file["edges"]).long()
        label = torch.from_numpy(file["label"]).long()
        masks = {part: torch.from_numpy(file[part]) for part in ("train", "val", "test")}
    return x / x.sum(1, keepdim=True).clamp(min=1), torch.cat([edges, edges.flip(0)], dim=1), label, masks


def main() -> skerry.Result:
    """Discover, train, tell."""
    torch.set_num_threads(1)
    x, edge_index, label, masks = load()
    torch.manual_seed(0)
    model = SAGE(x.shape[1], 256, 7)
    plan = skerry.discover(model, (x, edge_index))
    print(plan)
    train = masks["train"].nonzero().flatten()
    parts = [train[part] for part in skerry.split(label[train], 4, "iid", seed=0)]
    result = skerry.train(
        model, lambda out, y: F.cross_entropy(out, y, ignore_index=-1), OwnLabels((x, edge_index), label, parts),
        plan=plan, algorithm=skerry.ist(workers=4, local_steps=10, reshuffle=0.1),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=5e-4),
        num_rounds=20, verify=False,
        on_round=lambda record, state: print(f"round {record.round}: training loss {record.train_loss:.3f}", record.totals["time_s"]),
    )  # fmt: skip
    with torch.no_grad():
        right = (result.model(x, edge_index).argmax(1) == label)[masks["test"]]
    print(f"accuracy on {len(right)} test papers {right.float().mean():.3f}")
    return result


if __name__ == "__main__":
    main()
