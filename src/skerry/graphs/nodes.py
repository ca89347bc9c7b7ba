"""A test set of the nodes of a graph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skerry.data.labelled_nodes import check_mask, labelled, store_of
from skerry.model.class_labels import has_label
from skerry.model.graph_inputs import GraphInputs
from skerry.training.evaluation.metrics import Metric
from skerry.training.evaluation.test_set import Test


def Nodes(
    graph: Any,
    nodes: str | Tensor | None = "test_mask",
    *,
    kind: str = "",
    metrics: Mapping[str, Metric] | None = None,
    every: int = 0,
) -> Test:
    """Return a test set of nodes: the model runs on the whole graph, and is scored on those that have a label.

    Args:
        graph: ``Data`` or ``HeteroData`` of PyTorch Geometric, with labels ``y``.
        nodes: the name of a mask, a mask, or indices; None: all that have a label.
        kind: the type of the nodes that have labels, where a heterogeneous graph has several.
        metrics: see ``skerry.training.Test``.
        every: rounds between evaluations; 0: only after the last.

    Raises:
        ValueError: the graph has no such nodes.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> mask = torch.tensor([False, True, True])
        >>> graph = Data(x=torch.eye(3), edge_index=torch.zeros(2, 0).long(), y=torch.tensor([0, 1, 0]), test_mask=mask)
        >>> Nodes(graph, "test_mask").labels.tolist()
        [1, 0]
    """
    store, kind = store_of(graph, nodes if isinstance(nodes, str) else None, kind)
    if isinstance(nodes, Tensor):
        if nodes.dtype == torch.bool:
            check_mask(nodes, len(store.y), "nodes")
            nodes = nodes.nonzero().flatten()
        rows = nodes[has_label(store.y)[nodes]]
    else:
        rows = labelled(store, nodes)
    labels = store.y[rows]
    return Test(GraphInputs(graph, rows, kind), labels, metrics=metrics, every=every, batch_size=max(1, len(labels)))
