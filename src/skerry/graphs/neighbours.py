"""Sampled neighbourhoods of labelled nodes, as in GraphSAGE."""

from collections.abc import Sequence
from typing import Any

import torch

from skerry.data.labelled_nodes import Labels, deal_labels, labelled, store_of
from skerry.data.sample_order import SampleOrder
from skerry.graphs.adjacency import Adjacency
from skerry.graphs.on_graph import Batch, OnGraph
from skerry.model.graph_inputs import GraphInputs
from skerry.randomness import generator


def neighbours(
    graph: Any,
    num_workers: int,
    fanout: Sequence[int],
    batch_size: int,
    *,
    labels: Labels = "split",
    mask: str | None = "train_mask",
    seed: int = 0,
) -> OnGraph:
    """Return data whose batches are labelled nodes with sampled neighbourhoods, drawn in plain torch.

    The nodes of a batch come first, so the loss is of the first ``batch_size`` outputs. Batches are a pure function of
    (seed, worker, step).

    Args:
        graph: ``Data`` of PyTorch Geometric, with ``edge_index`` and labels ``y``; each worker reads all of it.
        num_workers: how many it is for.
        fanout: for each layer of the model, the most edges into a node, -1 for all: ``[15, 10]``.
        batch_size: labelled nodes in each batch.
        labels: ``"split"``: each worker learns from labelled nodes of its own; ``"all"``: each from all, in other
            orders.
        mask: the nodes to learn from; None: all that have a label. Classes below 0 are no labels.
        seed: determines split, order and neighbours.

    Raises:
        ValueError: the graph has no such nodes, or fewer than there are workers, or a number is out of range.

    References:
        Hamilton, Ying, Leskovec: Inductive Representation Learning on Large Graphs, 2017, arXiv 1706.02216.
    """
    if not isinstance(fanout, Sequence) or not fanout or any(most < -1 for most in fanout):
        raise ValueError(f"fanout={fanout!r}: expected for each layer a number of edges, or -1 for all, as in [15, 10]")
    edges = Adjacency(graph)
    store, _ = store_of(graph, mask)
    own = deal_labels(labelled(store, mask), num_workers, labels, seed)
    orders = [SampleOrder(len(part), batch_size=batch_size, seed=seed, worker=w) for w, part in enumerate(own)]

    def draw(worker: int, step: int) -> Batch:
        seeds = own[worker][torch.unique(orders[worker].batch(step))]  # one that is drawn twice counts once
        around = edges.sampled(seeds, list(fanout), generator(seed, "neighbours", worker, step))
        return GraphInputs(around, torch.arange(len(seeds))), around.y[: len(seeds)]

    def sample(worker: int, num: int) -> GraphInputs:
        seeds = own[worker][orders[worker].sample(num)]
        around = edges.sampled(seeds, list(fanout), generator(seed, "neighbours", worker, -1))
        return GraphInputs(around, torch.arange(len(seeds)))

    return OnGraph(num_workers, draw, sample, steps_per_pass=-(-max(map(len, own)) // batch_size))
