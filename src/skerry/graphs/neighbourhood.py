"""Some nodes of a graph with all that they receive from: enough to compute one step of messages for them exactly."""

import copy
from typing import Any, Self

import torch

from skerry.graphs.adjacency import Adjacency


class Neighbourhoods(Adjacency):
    """Cuts neighbourhoods out of a graph.

    Args:
        graph: ``Data`` of PyTorch Geometric with ``edge_index``.

    Attributes:
        num_nodes: of the graph.

    Raises:
        ValueError: it has none, as a heterogeneous graph.
    """

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.num_nodes: int = graph.num_nodes
        edges = graph.edge_index.as_subclass(torch.Tensor)
        self._edges, self._from = edges, edges[0].argsort(stable=True)
        self._degrees = edges[0].bincount(minlength=graph.num_nodes)
        self._first = self._degrees.cumsum(0) - self._degrees

    def members(self, nodes: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return ``nodes``, then the others that have an edge into them; and the number of edges into ``nodes``."""
        sources = self._into(nodes)[1]
        new = torch.zeros(len(self._place), dtype=torch.bool)
        new[sources] = True
        new[nodes] = False
        return torch.cat([nodes, new.nonzero().flatten()]), len(sources)

    def graph(self, members: torch.Tensor) -> Any:
        """Return the graph of ``members`` with all their edges; one more node, the last, stands for all other nodes.

        So members have their degrees, in both directions, and edges are in the order of the whole graph.
        """
        degree = self._degrees[members]
        rank = torch.arange(int(degree.sum())) - (degree.cumsum(0) - degree).repeat_interleave(degree)
        leaving = self._from[self._first[members].repeat_interleave(degree) + rank]
        edges = torch.cat([self._into(members)[0], leaving]).unique()  # type: ignore[no-untyped-call]
        place = torch.full_like(self._place, len(members))
        place[members] = torch.arange(len(members))
        rows = torch.cat([members, members[:1]])  # the last has features that a model can take
        return self._subgraph(rows, edges, place[self._edges[:, edges]])

    def without_features(self) -> Self:
        """Return the same with all features of nodes on meta, where only their shapes are known."""
        other = copy.copy(self)
        other._graph = copy.copy(self._graph)
        for key, value in self._graph.to_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and self._graph.is_node_attr(key):
                other._graph[key] = torch.empty(value.shape, dtype=value.dtype, device="meta")
        return other
