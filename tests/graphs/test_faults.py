"""Faults that users of graph networks met, each with what should happen instead."""

import warnings

import pytest
import torch
from made_graphs import EdgeIndex, made_graph, models
from torch.nn import functional as F

from skerry import discover, relay, train, verify
from skerry.graphs import Nodes, clusters
from skerry.training import evaluate
from skerry.training.train import calibration_inputs

pytestmark = [pytest.mark.usefixtures("no_costs"), pytest.mark.filterwarnings("ignore:Sparse")]


class Whole:
    """Data as people write it: the whole graph in every step, and -1 where a node has no label."""

    def __init__(self, graphs, labels):
        self.num_workers, self.graphs, self.labels = len(labels), graphs, labels

    def batches(self, worker, first_step, num_steps):
        return ((self.graphs[worker], self.labels[worker]) for _ in range(num_steps))

    def sample(self, worker, num):
        return self.graphs[worker]


def loss(output, y):
    return F.cross_entropy(output, y, ignore_index=-1)


def run(model, data, example, **more):
    return train(
        model, loss, data, plan=discover(model, example), algorithm=relay(2, local_steps=2), num_rounds=2,
        optimizer=lambda net: torch.optim.Adam(net.parameters(), 0.01), verify=False, **more,
    )  # fmt: skip


def test_graphs_of_workers_are_not_joined_to_calibrate_batch_norm():
    graph = made_graph()
    inputs = graph.x, graph.edge_index
    for other in (inputs, (graph.x[:30], graph.edge_index[:, (graph.edge_index < 30).all(0)])):
        data = Whole([inputs, other], [graph.y, graph.y[: len(other[0])]])
        assert len(calibration_inputs(data, [0, 1])) == 2
        result = run(models.GCN(6, 8, 2, 3, norm="batch_norm"), data, inputs)
        assert result.state.bad_rounds == 0


def test_nodes_without_a_label_are_not_counted():
    graph = made_graph()
    y = torch.where(graph.train_mask, graph.y, -1)

    class Perfect(torch.nn.Module):
        def forward(self, x, edge_index):
            return F.one_hot(graph.y, 3).float() * 9

    inputs = graph.x, graph.edge_index
    score = evaluate(Perfect(), loss, (inputs, y), metrics={"ones": lambda out, y: torch.ones(len(y))}, batch_size=99)
    assert (score.accuracy, score.count, score.metrics) == (1.0, 20, {"ones": 1.0})
    assert score.loss == pytest.approx(loss(Perfect()(*inputs), y).item())
    with pytest.raises(ValueError, match="all labels are below 0"):
        evaluate(Perfect(), loss, (inputs, torch.full_like(y, -1)), batch_size=99)


def test_attention_vectors_are_no_shared_matrix():
    graph = made_graph()
    for model in (models.GAT(6, 8, 2, 3, heads=2), models.GAT(6, 8, 2, 3)):
        plan = discover(model, graph)
        assert plan.axes
        assert plan.why_dependent(model) is None
    stem = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3))
    assert discover(stem, graph.x).why_dependent(stem) == "0.weight is on every worker"


def test_a_relay_on_regions_with_unlike_labels_trains_to_the_end():
    graph = made_graph()
    graph.y = graph.num // 15  # each region has classes of its own
    model = models.GCN(6, 8, 2, 4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = run(model, clusters(graph, 2, 4, 1, "regions"), graph, test=Nodes(graph))
    assert any("label skew" in str(warning.message) for warning in told)
    assert result.state.round == 2


def test_sparse_features_and_a_sparse_adjacency():
    graph = made_graph()
    x = graph.x.relu()
    size = (60, 60)
    adjacency = torch.sparse_coo_tensor(graph.edge_index, torch.ones(graph.num_edges), size, check_invariants=True)
    adjacency = adjacency.coalesce().to_sparse_csr()
    for inputs in ((x, adjacency), (x.to_sparse_csr(), graph.edge_index)):
        model = models.GCN(6, 8, 2, 3)
        assert [axis.num_units for axis in discover(model, inputs).axes] == [8]
        run(model, Whole([inputs, inputs], [graph.y, graph.y]), inputs)
    graph.x = x.to_sparse_csr()
    result = run(models.GCN(6, 8, 2, 3), clusters(graph, 2, 10, 2), graph, test=Nodes(graph))
    assert result.score.count == 40


def test_an_edge_index_with_caches():
    graph = made_graph()
    model = models.GraphSAGE(6, 8, 2, 3)
    edges, _ = EdgeIndex(graph.edge_index, sparse_size=(60, 60)).sort_by("col")
    inputs = graph.x, edges
    plan = discover(model, inputs)
    assert [axis.num_units for axis in plan.axes] == [8]
    verify(model, plan, inputs)
    graph.edge_index = edges
    assert run(model, clusters(graph, 2, 10, 2), graph).state.bad_rounds == 0


def test_a_worker_without_a_label_is_named():
    graph = made_graph()
    inputs = graph.x, graph.edge_index
    none = torch.full_like(graph.y, -1)
    with pytest.raises(ValueError, match="worker 1 has no label in round 0"):
        run(models.GCN(6, 8, 2, 3), Whole([inputs, inputs], [graph.y, none]), inputs)


@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm", "graph_norm"])
def test_a_layer_norm_is_told_with_a_remedy(norm):
    plan = discover(models.GraphSAGE(6, 8, 2, 3, norm=norm), made_graph())
    assert [axis.num_units for axis in plan.axes] == ([] if norm == "layer_norm" else [8])
    if norm == "layer_norm":
        assert any("layer norm" in note.why and "batch_norm" in note.why for note in plan.notes)
