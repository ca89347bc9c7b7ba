"""Graphs as they come: narrow equals masked on them, with the plan of another graph, and a training goes through."""

from functools import cache

import pytest
import torch
from equivalence import assert_narrow_equals_masked, dealt_to, doubled
from hypothesis import given, settings
from hypothesis import strategies as st
from made_graphs import KarateClub, made_graph, models, random_graph
from torch.nn import functional as F

from skerry import discover, relay, train
from skerry.graphs import Nodes, clusters, neighbours, whole

pytestmark = pytest.mark.usefixtures("no_costs")
MORE = {"GAT": {"heads": 2}, "PNA": {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.arange(4)}}


@cache
def built(kind):
    """A model in float64, and its plan, from a graph without oddities."""
    torch.manual_seed(0)
    graph = made_graph()
    model, inputs = doubled(getattr(models, kind)(6, 8, 2, 3, **MORE.get(kind, {})), graph)
    return model, discover(model, inputs)


KINDS = ("GCN", "GraphSAGE", "GAT", "GIN", "PNA")

odd = st.builds(random_graph, st.integers(1, 9), st.integers(0, 14), seed=st.integers(0, 99), directed=st.booleans())
ODD = {
    "isolated nodes": random_graph(40, 8),
    "no edges": random_graph(5, 0),
    "one node": random_graph(1, 0),
    "one node with loops": random_graph(1, 2),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(odd, st.integers(0, 9))
def test_narrow_equals_masked_on_any_graph(kind, graph, seed):
    model, plan = built(kind)
    graph.x = graph.x.double()
    for training in (False, True):
        assert_narrow_equals_masked(model, plan, graph, dealt_to(plan, 2, seed)[0], training=training)


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_equals_masked_on_a_real_graph(kind):
    """Members of a karate club and their friendships; the features that count are random."""
    model, plan = built(kind)
    (graph,) = KarateClub()
    graph.x = torch.randn(graph.num_nodes, 6, dtype=torch.float64)
    for units in dealt_to(plan, 2):
        assert_narrow_equals_masked(model, plan, graph, units, training=True)


@cache
def plan_of(norm):
    return discover(models.GCN(6, 8, 2, 3, norm=norm), made_graph())


def run(data, test, norm=None):
    return train(
        models.GCN(6, 8, 2, 3, norm=norm), F.cross_entropy, data, plan=plan_of(norm), algorithm=relay(2, local_steps=2),
        num_rounds=2, optimizer=lambda net: torch.optim.Adam(net.parameters(), 0.01), verify=False, test=test,
    )  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_training_on_an_odd_graph(name):
    graph = ODD[name]
    data = [whole(graph, 2), neighbours(graph, 2, [2, -1], 2, labels="all")]
    if graph.num_nodes > 1:
        data.append(clusters(graph, 2, 4, 1, "all"))
    for one in data:
        result = run(one, Nodes(graph, "train_mask"))
        assert (result.state.bad_rounds, result.score.count) == (0, int(graph.train_mask.sum()))


def test_batch_norm_on_regions_of_unequal_size():
    graph = made_graph()
    near = graph.edge_index.max(0).values < 15  # one part hangs together, the others are nodes by themselves
    graph.edge_index = graph.edge_index[:, near]
    del graph.edge_weight
    data = clusters(graph, 2, 8, 1, "regions")
    sizes = {len(inputs.graph.num) for w in range(2) for inputs, _ in data.batches(w, 0, 4)}
    assert len(sizes) > 1
    result = run(data, Nodes(graph), norm="batch_norm")
    assert result.state.bad_rounds == 0
    assert torch.isfinite(torch.tensor(result.score.loss))
