"""Small graphs of PyTorch Geometric, whose import warns, and models for them."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from skerry.graphs import clusters, neighbours, whole

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torch_geometric")
    import torch_geometric.loader
    import torch_geometric.nn.models
    from torch_geometric import EdgeIndex
    from torch_geometric.data import Batch, Data, HeteroData
    from torch_geometric.datasets import KarateClub

    models, loader, nn = torch_geometric.nn.models, torch_geometric.loader, torch_geometric.nn

__all__ = [
    "KINDS",
    "Batch",
    "Data",
    "EdgeIndex",
    "HeteroData",
    "KarateClub",
    "hetero_graph",
    "loader",
    "made_graph",
    "models",
    "nn",
    "random_graph",
]


def random_graph(num_nodes, num_edges, *, seed=0, features=6, directed=True):
    """Random edges, labels that the features tell, and every third node to train on."""
    rng = torch.Generator().manual_seed(seed)
    edges = torch.randint(max(1, num_nodes), (2, num_edges), generator=rng)
    y = torch.randint(3, (num_nodes,), generator=rng)
    x = F.one_hot(y, 3).float() @ torch.randn(3, features, generator=rng)
    x += 0.1 * torch.randn(num_nodes, features, generator=rng)
    train = torch.arange(num_nodes) % 3 == 0
    edges = edges if directed else torch.cat([edges, edges.flip(0)], 1)
    return Data(x=x, edge_index=edges, y=y, train_mask=train, test_mask=~train, num=torch.arange(num_nodes))


def made_graph():
    """A graph of four loose communities of 15 nodes, in both directions."""
    graph = random_graph(60, 150)
    source, target = graph.edge_index
    near = source % 15 + 15 * (target // 15)
    graph.edge_index = torch.cat([torch.stack([near, target]), torch.stack([target, near])], 1)
    graph.edge_weight = torch.arange(graph.edge_index.shape[1]).float()
    return graph


def hetero_graph():
    """Papers, which have labels, and authors."""
    graph = HeteroData()
    graph["paper"].x, graph["author"].x = torch.randn(9, 6), torch.randn(5, 6)
    graph["paper"].y = torch.arange(9) % 3
    for source, target in (("author", "paper"), ("paper", "author")):
        ends = [torch.randint(graph[kind].num_nodes, (14,)) for kind in (source, target)]
        graph[source, "to", target].edge_index = torch.stack(ends)
    return graph


KINDS = {
    "all": lambda g: clusters(g, 2, 10, 2, "all"),
    "random": lambda g: clusters(g, 2, 10, 2),
    "regions": lambda g: clusters(g, 2, 10, 2, "regions"),
    "neighbours": lambda g: neighbours(g, 2, [3, 2], 4),
    "whole": lambda g: whole(g, 2, "split"),
}
"""The ways in which workers get their batches of a graph, for two workers."""


def by_name(conv: nn.MessagePassing) -> nn.Sequential:
    """A Sequential of torch_geometric; here, since it imports the module that makes it."""
    return nn.Sequential("x, edge_index", [(conv, "x, edge_index -> x")])
