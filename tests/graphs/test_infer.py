"""Inference some nodes at a time, against one forward of the whole model on the whole graph."""

import warnings

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from together import together
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.graphs.infer import _Layers
from skerry.graphs.live_bytes import LiveBytes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pyg = pytest.importorskip("torch_geometric.nn", exc_type=ImportError)
    from torch_geometric.data import Data, HeteroData
from skerry.graphs import infer


class Net(nn.Module):
    """Convolutions with an activation between them."""

    def __init__(self, *convolutions: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.convolutions, self.norm = nn.ModuleList(convolutions), norm or nn.Identity()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for convolution in self.convolutions[:-1]:
            x = torch.relu(self.norm(convolution(x, edge_index)))
        return self.convolutions[-1](x, edge_index)


NETS = {
    "gcn": lambda: pyg.GCN(6, 12, 3, 4, norm="batch"),
    "sage": lambda: pyg.GraphSAGE(6, 12, 2, 4, jk="cat"),
    "gat": lambda: pyg.GAT(6, 12, 2, 4, heads=3),
    "gin": lambda: pyg.GIN(6, 12, 2, 4),
    "largest neighbour": lambda: Net(pyg.SAGEConv(6, 12, aggr="max"), pyg.SAGEConv(12, 4, project=True)),
    "several steps, cached": lambda: Net(pyg.ChebConv(6, 12, 3), pyg.SGConv(12, 4, 2, cached=True)),
}


def _graph(num_nodes: int, edges: list[tuple[int, int]], sparse: bool = False) -> Data:
    x = torch.randn(num_nodes, 6).relu()
    index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).t() % num_nodes
    return Data(x=x.to_sparse_csr() if sparse else x, edge_index=index.contiguous(), num_nodes=num_nodes)


def _forward(net: nn.Module, graph: Data) -> Tensor:
    net.eval()
    with torch.no_grad():
        return net(graph.x, graph.edge_index)


def _assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))


ends = st.integers(0, 30)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate])
@example(num_nodes=1, edges=[])
@example(num_nodes=5, edges=[(0, 0), (0, 1), (3, 1), (0, 1)])
@given(num_nodes=st.integers(1, 20), edges=st.lists(st.tuples(ends, ends), max_size=40))
def test_any_graph_gets_the_outputs_of_one_forward(name, num_nodes, edges):
    """Isolated nodes, no edges, one node, self loops, directed edges and edges that are there twice among them."""
    torch.manual_seed(0)
    net, graph = NETS[name](), _graph(num_nodes, edges)
    found = infer(net, graph, max_bytes=20_000)  # a few nodes at a time
    _assert_close(found, _forward(net, graph))
    some = torch.randperm(num_nodes)[: num_nodes // 2 + 1]
    _assert_close(infer(net, graph, nodes=some, max_bytes=20_000), found[some])


def test_only_what_nodes_receive_from_is_computed():
    net, graph = NETS["gcn"](), _graph(400, [(k, k + 1) for k in range(399)])
    seen = []
    net.convs[0].lin.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    mask = torch.arange(400) == 300
    _assert_close(infer(net, graph, nodes=mask), _forward(net, graph)[mask])
    compared, whole = seen[:-1], seen[-1]
    assert whole == 400
    assert sum(compared) < 400


@pytest.mark.parametrize(("kind", "widths"), [(pyg.GCN, [12, 4]), (pyg.GraphSAGE, [6, 12, 12])])
def test_what_is_kept_is_what_the_next_step_reads_where_nothing_else_is_needed(kind, widths, monkeypatch):
    """A GCN reads what its linear layers give; GraphSAGE needs a node's own features beside those of its neighbours."""
    seen, room = [], _Layers._room
    monkeypatch.setattr(_Layers, "_room", lambda self, shape, dtype: seen.append(shape) or room(self, shape, dtype))
    for degree in 1, 3, 8:
        edges = [(k + j, k) for k in range(100) for j in range(1, degree + 1)]
        seen.clear()
        net, graph = kind(6, 12, 3, 4), _graph(100, edges)
        _assert_close(infer(net, graph), _forward(net, graph))
        assert [shape[1] for shape in seen if shape[0] == 100] == widths


def test_a_little_of_an_earlier_step_is_not_left_out(monkeypatch):
    """It is below the tolerance of the comparison, and yet seen, since what is not kept is on meta."""
    seen, room = [], _Layers._room
    monkeypatch.setattr(_Layers, "_room", lambda self, shape, dtype: seen.append(shape) or room(self, shape, dtype))

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = pyg.GCNConv(6, 4), pyg.GCNConv(4, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.a(x, edge_index).relu()
            return self.b(h, edge_index) + 1e-6 * h

    net, graph = Skips(), _graph(100, [(k + j, k) for k in range(100) for j in range(1, 31)])
    _assert_close(infer(net, graph), _forward(net, graph))
    assert len([shape for shape in seen if shape[0] == 100]) == 2  # a result of each step


@pytest.mark.parametrize("nodes", [[1, 1], [5], [-1], [], [[1]], [0.5], [True]])
def test_nodes_that_are_not_there_are_refused(nodes):
    with pytest.raises(ValueError, match=r"nodes: got .* expected a mask of 5 nodes"):
        infer(NETS["gcn"](), _graph(5, []), nodes=torch.tensor(nodes))


def test_memory_for_less_than_a_node_with_its_neighbours_is_refused():
    hub = _graph(40, [(k, 7) for k in range(40)])
    with pytest.raises(ValueError, match=r"max_bytes=3000: node 7 with its 40 edges takes (\d+) bytes") as refused:
        infer(pyg.GCN(6, 12, 2, 4), hub, max_bytes=3000)
    enough = int(str(refused.value).split("takes ")[1].split()[0])
    assert enough > 3000
    with pytest.raises(ValueError, match="max_bytes=0: node 0"):
        infer(pyg.GCN(6, 12, 2, 4), hub, max_bytes=0)


def test_the_net_is_left_as_it_was():
    net, graph = NETS["several steps, cached"](), _graph(9, [(k, k + 1) for k in range(9)])
    before = [set(vars(module)) for module in net.modules()]
    infer(net, graph)
    assert net.training
    assert [set(vars(module)) for module in net.modules()] == before
    assert net.convolutions[1]._cached_x is None


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_features():
    torch.manual_seed(0)
    net = pyg.GCN(6, 12, 2, 4)
    edges = [(k, 3 * k) for k in range(40)]
    torch.manual_seed(1)
    dense = _graph(40, edges)
    torch.manual_seed(1)
    _assert_close(infer(net, _graph(40, edges, sparse=True), max_bytes=10_000), _forward(net, dense))


def test_memory_is_bounded_also_with_results_in_a_file(tmp_path):
    torch.manual_seed(0)
    num, most = 600, 400_000
    net = pyg.GCN(6, 256, 2, 4)
    graph = Data(x=torch.randn(num, 6), edge_index=torch.randint(num, (2, 3 * num)))
    with LiveBytes() as whole:
        expected = _forward(net, graph)
    with LiveBytes() as parts:
        found = infer(net, graph, max_bytes=most, folder=tmp_path)
    _assert_close(found, expected)
    the_graph = sum(tensor.nbytes for tensor in (graph.x, graph.edge_index, found)) * 4  # sorted by either end
    assert parts.most < most + the_graph < whole.most / 3
    assert list(tmp_path.iterdir()) == []


def test_a_net_that_looks_at_all_nodes_is_refused():
    graph = _graph(60, [(k, 7 * k % 60) for k in range(60)])
    with pytest.raises(ValueError, match=r"GCN: outputs differ .*normalises over nodes"):
        infer(pyg.GCN(6, 12, 2, 4, norm="graph_norm"), graph)

    class Pooled(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(x, edge_index).mean(0, keepdim=True)

    with pytest.raises(ValueError, match=r"\(1, 4\) on \d+ nodes, expected .* a row for each"):
        infer(Pooled(pyg.GCNConv(6, 4)), graph)
    with pytest.raises(ValueError, match=r"ARMAConv: gives \(2, \d+, 12\) .* a row for each"):
        infer(Net(pyg.ARMAConv(6, 12, num_stacks=2), pyg.GCNConv(12, 4)), graph)
    with pytest.raises(ValueError, match="HeteroData"):
        infer(pyg.GCN(6, 12, 2, 4), HeteroData())


def _session(runtime=None, algorithm=None) -> tuple[skerry.Session, Data]:
    torch.manual_seed(0)
    graph, net = _graph(40, [(k, 3 * k + 1) for k in range(80)]), pyg.GCN(6, 12, 3, 4, norm="batch")
    labels = torch.arange(40) % 4
    session = skerry.Session(
        net, plan=skerry.discover(net, (graph.x, graph.edge_index)),
        algorithm=algorithm or skerry.relay(workers=3, local_steps=2),
        optimizer=lambda narrow: torch.optim.Adam(narrow.parameters(), 0.01), num_rounds=2, runtime=runtime,
    )  # fmt: skip
    for round in session.rounds():
        for worker in round.workers:
            for _ in range(worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(graph.x, graph.edge_index), labels))
    return session, graph


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
@pytest.mark.slow
def test_a_relay_is_the_mean_of_its_nets_also_where_no_process_has_them_all():
    session, graph = _session()
    full = session.full(graph)
    expected = _forward(full.module, graph)
    _assert_close(infer(full, graph), expected)
    _assert_close(infer(full.whole(), graph), expected)

    def work(member) -> None:
        full = _session(member)[0].full(graph)  # batch norms have other statistics, of three times as many samples
        _assert_close(infer(full, graph), full.module(graph.x, graph.edge_index))

    together(3, work)


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
def test_subnets_that_share_weights_have_no_nets_to_run():
    def work(member) -> Tensor:
        session, graph = _session(member, skerry.ist(workers=3, local_steps=2))
        return infer(session.full(graph), graph)

    with pytest.raises(ValueError, match=r"no process holds a net of its own.*\brelay\b"):
        together(3, work)


def test_bytes_of_views_and_of_what_was_there_before_do_not_count_twice():
    there = torch.ones(100)
    with LiveBytes() as live:
        kept = there * 2
        kept.view(10, 10).t().relu_()
        there.view(10, 10)
        for _ in range(3):
            torch.zeros(1000)
    assert live.most == 400 + 4000
