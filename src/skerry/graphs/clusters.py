"""Clusters of a graph: batches of parts that few edges leave, and workers that own some of them."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from skerry.choose import choose
from skerry.data.labelled_nodes import labelled, store_of
from skerry.data.sample_order import SampleOrder
from skerry.graphs.adjacency import Adjacency
from skerry.graphs.on_graph import Batch, OnGraph
from skerry.graphs.partition import partition
from skerry.model.graph_inputs import GraphInputs
from skerry.randomness import generator
from skerry.whole_number import check_whole_number

Own = Literal["all", "random", "regions"]


def clusters(
    graph: Any,
    num_workers: int,
    num_parts: int,
    per_batch: int,
    own: Own = "random",
    *,
    mask: str | None = "train_mask",
    seed: int = 0,
) -> OnGraph:
    """Return data whose batches are unions of clusters, with all edges between their nodes (Cluster-GCN).

    METIS (pymetis) cuts the graph into ``num_parts`` parts. Each worker sees its parts in an order of its own, drawn
    from (seed, worker), and a batch may span two passes. A batch without a labelled node gets one more part that has
    some.

    Args:
        graph: ``Data`` of PyTorch Geometric, with ``edge_index`` and labels ``y``; each worker reads all of it.
        num_workers: how many it is for.
        num_parts: clusters in all.
        per_batch: clusters in each batch.
        own: whose they are. ``"all"``: each worker sees all of them. ``"random"``: each has a random part of them.
            ``"regions"``: each has a region of the graph, cut by METIS, too, and never sees an edge to another one;
            their labels are often unlike each other.
        mask: the nodes to learn from; None: all that have a label. Classes below 0 are no labels.
        seed: determines which worker has which clusters, and the order.

    Raises:
        ValueError: a number is out of range, or a worker would own no labelled node.

    References:
        Chiang, Liu, Si, Li, Bengio, Hsieh: Cluster-GCN, KDD 2019, arXiv 1905.07953.
    """
    choose(own, get_args(Own), "own")
    check_whole_number("per_batch", per_batch, 1)
    edges = Adjacency(graph)
    store, _ = store_of(graph, mask)
    is_labelled = torch.zeros(graph.num_nodes, dtype=torch.bool)
    is_labelled[labelled(store, mask)] = True
    parts = _parts_by_worker(graph, num_workers, num_parts, own, seed)
    with_labels = [[part for part in mine if bool(is_labelled[part].any())] for mine in parts]
    for worker, found in enumerate(with_labels):
        if not found:
            raise ValueError(
                f"own='{own}': worker {worker} owns {sum(map(len, parts[worker]))} nodes, none of them labelled"
                f"{f' ({mask})' if mask else ''}; use own='all', fewer workers or other parts"
            )
    orders = [SampleOrder(len(mine), batch_size=per_batch, seed=seed, worker=w) for w, mine in enumerate(parts)]

    def draw(worker: int, step: int) -> Batch:
        chosen = [parts[worker][k] for k in torch.unique(orders[worker].batch(step)).tolist()]
        if not any(bool(is_labelled[part].any()) for part in chosen):
            chosen.append(with_labels[worker][step % len(with_labels[worker])])
        nodes = torch.cat(chosen)
        inside = edges.induced(nodes)
        rows = is_labelled[nodes].nonzero().flatten()
        return GraphInputs(inside, rows), inside.y[rows]

    def sample(worker: int, num: int) -> GraphInputs:
        found: list[Tensor] = []
        for k in orders[worker].sample(len(parts[worker])).tolist():
            if sum(map(len, found)) < num:
                found.append(parts[worker][k])
        nodes = torch.cat(found)
        return GraphInputs(edges.induced(nodes), torch.arange(len(nodes)))

    return OnGraph(num_workers, draw, sample, steps_per_pass=-(-max(map(len, parts)) // per_batch))


def _parts_by_worker(graph: Any, num_workers: int, num_parts: int, own: Own, seed: int) -> list[list[Tensor]]:
    """Return the nodes of each of the worker's clusters; none is empty."""
    check_whole_number("num_workers", num_workers, 1)
    if num_parts < num_workers:
        raise ValueError(f"num_parts={num_parts} for {num_workers} workers, expected at least one cluster for each")
    edge_index, num_nodes = graph.edge_index.as_subclass(Tensor), graph.num_nodes
    everything = torch.arange(num_nodes)
    parts = partition(edge_index, everything, num_workers if own == "regions" else num_parts)
    if own == "all":
        return [parts] * num_workers
    if len(parts) < num_workers:
        raise ValueError(f"{len(parts)} clusters that are not empty for {num_workers} workers; use fewer workers")
    if own == "regions":
        return [partition(edge_index, region, num_parts // num_workers) for region in parts]
    order = torch.randperm(len(parts), generator=generator(seed, "clusters")).tolist()
    return [[parts[k] for k in order[w::num_workers]] for w in range(num_workers)]
