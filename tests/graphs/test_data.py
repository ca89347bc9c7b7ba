"""Batches of graphs: against torch_geometric's own subgraphs, and properties on generated graphs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_graphs import KINDS, Batch, Data, hetero_graph, loader, made_graph, random_graph
from torch.utils.data import DataLoader

from skerry import from_loaders
from skerry.graphs import GraphInputs, Nodes, clusters, neighbours, whole
from skerry.graphs.adjacency import Adjacency, select_rows
from skerry.graphs.partition import partition
from skerry.model.inputs import map_tensors, to

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


def as_dict(batch):
    inputs, y = batch
    return {k: torch.as_tensor(v) for k, v in {**inputs.graph.to_dict(), "rows": inputs.rows, "labels": y}.items()}


def equal(a, b):
    a, b = as_dict(a), as_dict(b)
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and bool((a[k] == b[k]).all()) for k in a)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_depend_on_worker_and_step_alone_and_have_labels(kind):
    graph = made_graph()
    data, again = KINDS[kind](graph), KINDS[kind](graph)
    for worker in range(2):
        batches = list(data.batches(worker, 0, 7))
        assert all(map(equal, batches[5:], again.batches(worker, 5, 2)))
        for inputs, y in batches:
            assert len(y) > 0
            assert inputs.graph.train_mask[inputs.rows].all()
            assert torch.equal(inputs.graph.y[inputs.rows], y)
    assert not equal(next(data.batches(0, 0, 1)), next(data.batches(1, 0, 1)))


@pytest.mark.parametrize("kind", ["random", "regions"])
def test_own_clusters_are_disjoint_and_cover_the_graph(kind):
    data = KINDS[kind](made_graph())
    seen = [
        {int(n) for inputs, _ in data.batches(w, 0, data.steps_per_pass + 1) for n in inputs.graph.num} for w in (0, 1)
    ]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(60))


graphs = st.builds(random_graph, st.integers(1, 25), st.integers(0, 40), seed=st.integers(0, 9), directed=st.booleans())


@settings(max_examples=30)
@given(graphs, st.data())
def test_an_induced_subgraph_is_that_of_torch_geometric(graph, data):
    nodes = torch.tensor(data.draw(st.lists(st.integers(0, graph.num_nodes - 1), unique=True)), dtype=torch.int64)
    graph.edge_attr = torch.randn(graph.num_edges, 2)
    own, theirs = Adjacency(graph).induced(nodes), graph.subgraph(nodes)
    assert torch.equal(own.num, theirs.num)
    assert torch.equal(own.x, theirs.x)

    def edges(g):
        return sorted(
            [*ends, *attr] for ends, attr in zip(g.num[g.edge_index].T.tolist(), g.edge_attr.tolist(), strict=True)
        )

    assert edges(own) == edges(theirs)


@settings(max_examples=30)
@given(graphs, st.lists(st.integers(-1, 4), min_size=1, max_size=3), st.integers(0, 99))
def test_sampled_neighbours(graph, fanout, seed):
    seeds = torch.arange(graph.num_nodes).flip(0)[::3]
    graph.at = torch.arange(graph.num_edges)
    graph.edge_at = torch.arange(graph.num_edges)
    around = Adjacency(graph).sampled(seeds, fanout, torch.Generator().manual_seed(seed))
    assert torch.equal(around.num[: len(seeds)], seeds)
    assert len(around.num.unique()) == len(around.num)
    degree, hops = (
        graph.edge_index[1].bincount(minlength=graph.num_nodes),
        around.edge_index[1].bincount(minlength=len(around.num)),
    )
    first = degree[seeds] if fanout[0] < 0 else degree[seeds].clamp(max=fanout[0])
    assert torch.equal(hops[: len(seeds)], first)
    assert (hops <= (degree[around.num] if -1 in fanout else degree[around.num].clamp(max=max(fanout)))).all()
    edges = {tuple(edge) for edge in graph.edge_index.T.tolist()}
    assert {tuple(edge) for edge in around.num[around.edge_index].T.tolist()} <= edges


@settings(max_examples=30)
@given(graphs, st.integers(1, 6))
def test_a_partition_has_each_node_once_and_no_empty_part(graph, num_parts):
    nodes = torch.arange(graph.num_nodes)[::2]
    parts = partition(graph.edge_index, nodes, num_parts)
    assert len(parts) <= num_parts
    assert all(len(part) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, nodes)


def test_rows_of_sparse_features():
    x = (torch.rand(7, 5) < 0.3).float()
    rows = torch.tensor([6, 0, 0, 3])
    assert torch.equal(select_rows(x.to_sparse_csr(), rows).to_dense(), x[rows])
    graph = made_graph()
    graph.x = graph.x.relu().to_sparse_csr()
    inputs, _ = next(clusters(graph, 2, 6, 1).batches(0, 0, 1))
    assert torch.equal(inputs.graph.x.to_dense(), graph.x.to_dense()[inputs.graph.num])


def test_the_whole_graph_is_moved_to_a_device_once():
    graph, meta = made_graph(), torch.device("meta")
    (first, y), (second, _) = (to(batch, meta) for batch in whole(graph, 2, "split").batches(0, 0, 2))
    assert first.graph is second.graph
    assert first.graph.x.is_meta
    assert first.rows.is_meta
    assert y.is_meta
    assert not graph.x.is_meta
    other = map_tensors(lambda t: t.double(), second)  # no longer that graph
    assert to(other, meta).graph.x.dtype == torch.float64
    assert GraphInputs(graph, y).to(meta).graph.x.is_meta


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"fanout=3.*\[15, 10\]"):
        neighbours(made_graph(), 2, 3, 4)
    graph = made_graph()
    graph.train_mask = graph.num < 8  # in one community
    with pytest.raises(ValueError, match=r"own='regions'.*worker \d owns.*train_mask"):
        clusters(graph, 4, 4, 1, "regions")
    for make in (
        lambda: whole(graph, 2, mask="trian_mask"),
        lambda: whole(Data(x=graph.x, edge_index=graph.edge_index), 2),
        lambda: whole(graph, 2, kind="paper"),
        lambda: Nodes(graph, "tset_mask"),
    ):
        with pytest.raises(
            ValueError, match=r"graph: (no 'y' and )?(no '(trian|train|tset)_mask'; give mask=|nodes with 'y')"
        ):
            make()
    graph.y = torch.full_like(graph.y, -1)
    with pytest.raises(ValueError, match="no node has a label in 'train_mask'"):
        whole(graph, 2)
    with pytest.raises(ValueError, match="HeteroData without one 'edge_index'"):
        neighbours(hetero_graph(), 2, [2], 2)
    with pytest.raises(ValueError, match=r"unknown labels 'splt'"):
        whole(made_graph(), 2, "splt")
    with pytest.raises(ValueError, match=r"num_parts=1 for 2 workers"):
        clusters(made_graph(), 2, 1, 1)


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("train_mask", lambda g: g.train_mask[:, None].repeat(1, 10), r"train_mask .*\(\d+, 10\).*choose one split"),
        ("train_mask", lambda g: g.train_mask.long(), "train_mask .*int64.*bool"),
        ("y", lambda g: g.y[:, None], r"y has shape .*squeeze\(1\)"),
        ("edge_index", lambda g: g.edge_index + g.num_nodes, "edge_index has nodes .* expected 0 to"),
        ("edge_index", lambda g: torch.rand(g.num_nodes, g.num_nodes), "edge_index .*float32.*dense_to_sparse"),
    ],
)
def test_graphs_of_other_shapes_are_refused(attribute, value, words):
    graph = made_graph()
    graph[attribute] = value(graph)
    with pytest.raises(ValueError, match=words):
        neighbours(graph, 2, [2, 2], 4)


def test_the_nodes_of_a_mask_itself_are_those_of_its_name():
    graph = made_graph()
    graph.y[graph.test_mask.nonzero()[0]] = -1
    named, given = Nodes(graph, "test_mask"), Nodes(graph, graph.test_mask)
    assert torch.equal(named.labels, given.labels)
    assert torch.equal(named.inputs.rows, given.inputs.rows)


def test_batches_of_loaders():
    graph = made_graph()
    seeds = graph.clone()
    seeds.batch_size = 4  # as a NeighborLoader gives it
    mixed = hetero_graph()
    mixed["paper"].batch_size = 2
    rings = [Data(x=torch.randn(n, 6), edge_index=torch.zeros(2, 0).long(), y=torch.tensor([n % 3])) for n in (3, 4, 1)]
    cases = {
        "seeds": (seeds, [0, 1, 2, 3], seeds.y[:4], ""),
        "mask": (graph, list(range(0, 60, 3)), graph.y[::3], ""),
        "several types": (hetero_graph(), list(range(9)), torch.arange(9) % 3, "paper"),
        "seeds of a type": (mixed, [0, 1], torch.tensor([0, 1]), "paper"),
        "graphs": (Batch.from_data_list(rings), [0, 1, 2], torch.tensor([0, 1, 1]), ""),
    }
    for name, (batch, rows, labels, kind) in cases.items():
        loaders = [DataLoader([batch], batch_size=None)] * 2
        ((inputs, y),) = from_loaders(loaders).batches(0, 0, 1)
        assert (inputs.rows.tolist(), y.tolist(), inputs.kind) == (rows, labels.tolist(), kind), name
        assert len(from_loaders(loaders).sample(0, 2).rows) == 2, name
    graph.train_mask[:] = False
    with pytest.raises(ValueError, match=r"worker 0, step 0: .*no labelled"):
        next(from_loaders([DataLoader([graph], batch_size=None)]).batches(0, 0, 1))


def test_a_neighbor_loader_is_not_dealt():
    graph = made_graph()
    sampler = loader.NodeLoader(graph, lambda *_: None, input_nodes=graph.train_mask, batch_size=4)
    with pytest.raises(ValueError, match=r"NodeLoader has an iterator of its own.*list of one per worker"):
        from_loaders(sampler, num_workers=2)
