"""The whole graph in every step: small graphs, as in the paper's experiments on Cora."""

from typing import Any

import torch

from skerry.data.labelled_nodes import Labels, deal_labels, labelled, store_of
from skerry.graphs.on_graph import Batch, OnGraph
from skerry.model.graph_inputs import GraphInputs, Moved


def whole(
    graph: Any,
    num_workers: int,
    labels: Labels = "all",
    *,
    mask: str | None = "train_mask",
    kind: str = "",
    seed: int = 0,
) -> OnGraph:
    """Return data whose every batch is the whole graph.

    Args:
        graph: ``Data`` or ``HeteroData`` of PyTorch Geometric, with labels ``y``.
        num_workers: how many it is for.
        labels: ``"all"``: each worker learns from all labelled nodes, as in GIST; ``"split"``: from a part of its own.
        mask: the nodes to learn from; None: all that have a label. Classes below 0 are no labels.
        kind: the type of the nodes that have labels, where a heterogeneous graph has several.
        seed: of the split.

    Raises:
        ValueError: the graph has no such nodes, or fewer than there are workers.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([1, -1, 0]))
        >>> inputs, y = next(iter(whole(graph, 2, mask=None).batches(worker=0, first_step=0, num_steps=1)))
        >>> inputs.rows.tolist(), y.tolist()
        ([0, 2], [1, 0])
    """
    store, kind = store_of(graph, mask, kind)
    moved = Moved(graph)
    own = deal_labels(labelled(store, mask), num_workers, labels, seed)

    def draw(worker: int, step: int) -> Batch:
        return GraphInputs(graph, own[worker], kind, moved), store.y[own[worker]]

    def sample(worker: int, num: int) -> GraphInputs:
        return GraphInputs(graph, torch.arange(len(store.y)), kind)

    return OnGraph(num_workers, draw, sample, steps_per_pass=1)
