"""A graph's edges by target: the subgraph of some nodes, and sampled neighbours, in plain torch."""

import copy
from typing import Any

import torch
from torch import Tensor


class Adjacency:
    """The edges of a graph, sorted by the node that they point to.

    Args:
        graph: ``Data`` of PyTorch Geometric with ``edge_index``.

    Raises:
        ValueError: it has none, as a heterogeneous graph, or one that names other nodes.
    """

    def __init__(self, graph: Any) -> None:
        if len(graph.stores) > 1 or not isinstance(getattr(graph, "edge_index", None), Tensor):
            raise ValueError(
                f"graph: {type(graph).__name__} without one 'edge_index', expected Data; for a heterogeneous graph use "
                "whole(graph, ...), or from_loaders([NeighborLoader(...), ...])"
            )
        edges = graph.edge_index.as_subclass(Tensor)  # not an EdgeIndex
        if edges.dim() != 2 or len(edges) != 2 or edges.dtype != torch.int64:
            raise ValueError(
                f"graph: edge_index has {edges.dtype} of shape {tuple(edges.shape)}, expected int64 of (2, num_edges); "
                "PyG's dense_to_sparse makes it from an adjacency matrix"
            )
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < graph.num_nodes:
            raise ValueError(
                f"graph: edge_index has nodes {int(edges.min())} to {int(edges.max())}, expected 0 to "
                f"{graph.num_nodes - 1}, as the graph has {graph.num_nodes} nodes"
            )
        self._graph, self._place = graph, torch.full((graph.num_nodes,), -1)
        self._numbers = edges[1].argsort(stable=True)
        self._sources = edges[0][self._numbers]
        self._starts = torch.zeros(graph.num_nodes + 1, dtype=torch.int64)
        self._starts[1:] = edges[1].bincount(minlength=graph.num_nodes).cumsum(0)

    def induced(self, nodes: Tensor) -> Any:
        """Return the subgraph of ``nodes``, in that order, with all edges between them and all attributes."""
        edges, source, target = self._into(nodes)
        self._place[nodes] = torch.arange(len(nodes))
        inside = self._place[source] >= 0
        index = torch.stack([self._place[source[inside]], target[inside]])
        self._place[nodes] = -1
        return self._subgraph(nodes, edges[inside], index)

    def sampled(self, seeds: Tensor, fanout: list[int], generator: torch.Generator) -> Any:
        """Return a neighbourhood of ``seeds``, which come first: for each hop at most so many edges into each new node.

        Args:
            seeds: distinct nodes.
            fanout: edges per node, hop by hop; -1: all. They are drawn uniformly, without replacement.
            generator: draws them.
        """
        nodes, frontier, found = seeds, seeds, list[tuple[Tensor, Tensor]]()
        self._place[seeds] = torch.arange(len(seeds))
        for most in fanout:
            edges, source, target = self._into(frontier, most, generator)
            new = torch.unique(source[self._place[source] < 0])
            self._place[new] = len(nodes) + torch.arange(len(new))
            found.append((edges, torch.stack([self._place[source], self._place[frontier][target]])))
            nodes, frontier = torch.cat([nodes, new]), new
        self._place[nodes] = -1
        numbers, index = zip(*found, strict=True)
        return self._subgraph(nodes, torch.cat(numbers), torch.cat(index, 1))

    def _into(
        self, nodes: Tensor, most: int = -1, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return edges into ``nodes``, at most ``most`` each: their numbers, sources, and positions in ``nodes``."""
        degree = self._starts[nodes + 1] - self._starts[nodes]
        target = torch.arange(len(nodes)).repeat_interleave(degree)
        rank = torch.arange(len(target)) - (degree.cumsum(0) - degree)[target]
        at = self._starts[nodes][target] + rank
        if most >= 0:
            # Sorted by target and, within it, by chance; double, so that a large target leaves bits for the chance.
            order = (target + torch.rand(len(at), generator=generator, dtype=torch.float64)).argsort()
            kept = order[rank < most]
            at, target = at[kept], target[kept]
        return self._numbers[at], self._sources[at], target

    def _subgraph(self, nodes: Tensor, edges: Tensor, index: Tensor) -> Any:
        graph, made = self._graph, copy.copy(self._graph)
        for key, value in graph.to_dict().items():
            if key != "edge_index" and isinstance(value, Tensor) and graph.is_node_attr(key):
                made[key] = select_rows(value, nodes)
            elif key != "edge_index" and isinstance(value, Tensor) and graph.is_edge_attr(key):
                made[key] = value[edges]
        made.edge_index, made.num_nodes = index, len(nodes)
        return made


def select_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of a tensor, also of a sparse one (CSR)."""
    if tensor.layout != torch.sparse_csr:
        return tensor[rows]
    starts, columns, values = tensor.crow_indices(), tensor.col_indices(), tensor.values()
    length = starts[rows + 1] - starts[rows]
    ends = torch.cat([length.new_zeros(1), length.cumsum(0)])
    at = torch.arange(int(ends[-1])) + (starts[rows] - ends[:-1]).repeat_interleave(length)
    size = (len(rows), tensor.shape[1])
    return torch.sparse_csr_tensor(ends, columns[at], values[at], size, check_invariants=False)  # they hold
