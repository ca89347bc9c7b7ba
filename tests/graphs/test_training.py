"""Training on graphs: whoever calls the model gives it what its forward names, and only labelled nodes count."""

from functools import cache

import pytest
import torch
from machines import run_on_machines
from made_graphs import KINDS, Batch, Data, by_name, hetero_graph, loader, made_graph, models, nn
from together import together
from torch.nn import functional as F

from skerry import Checkpoints, Processes, Session, discover, from_loaders, ist, narrow, relay, train
from skerry.graphs import GraphInputs, Nodes, clusters, whole
from skerry.model.inputs import call
from skerry.subnet.side_by_side import SideBySide
from skerry.training import evaluate

pytestmark = pytest.mark.usefixtures("no_costs")


def adam(net):
    return torch.optim.Adam(net.parameters(), 0.02)


@cache
def plan_of(norm):
    graph = made_graph()
    return discover(models.GraphSAGE(6, 8, 2, 3, norm=norm), graph)


def run(data, graph, *, algorithm=None, norm="batch_norm", rounds=4, test=True, **more):
    torch.manual_seed(0)
    model = models.GraphSAGE(6, 8, 2, 3, norm=norm)
    return train(
        model, F.cross_entropy, data, plan=plan_of(norm), algorithm=algorithm or relay(2, local_steps=3),
        optimizer=adam, num_rounds=rounds, test=Nodes(graph) if test else None, **{"verify": False, **more},
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_and_resumes_exactly(kind, tmp_path):
    graph = made_graph()
    whole_run = run(KINDS[kind](graph), graph, rounds=6, verify=True)
    assert whole_run.score.count == 40
    assert whole_run.score.accuracy > 0.7
    kept = [Checkpoints(folder=tmp_path, every_s=0, resume=resume) for resume in (False, True)]
    run(KINDS[kind](graph), graph, rounds=3, test=False, checkpoints=kept[0])
    resumed = run(KINDS[kind](graph), graph, rounds=6, checkpoints=kept[1])
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, whole_run.model.state_dict()[name]), name


def of_regions(runtime=None):
    graph = made_graph()
    result = run(KINDS["regions"](graph), graph, norm=None, rounds=2, runtime=runtime, test=False)
    return {name: tensor.clone() for name, tensor in result.full.tensors()}


def one_region(rank):
    with Processes.join() as runtime:
        torch.save(of_regions(runtime), "weights")


def test_two_processes_with_a_region_each_do_what_the_serial_runtime_does(tmp_path):
    assert run_on_machines(tmp_path, one_region, one_region)[0] == [0, 0]
    serial, weights = of_regions(), torch.load(tmp_path / "0" / "weights")
    assert weights.keys() == serial.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, serial[name])


@pytest.mark.parametrize("kind", ["regions", "neighbours"])
@pytest.mark.parametrize("algorithm", [relay(2, local_steps=3), ist(2, local_steps=3)], ids=["relay", "ist"])
def test_processes_do_what_the_serial_runtime_does(kind, algorithm):
    graph = made_graph()
    serial = run(KINDS[kind](graph), graph, algorithm=algorithm)

    def work(member):
        result = run(KINDS[kind](graph), graph, algorithm=algorithm, runtime=member)
        return {name: tensor.clone() for name, tensor in result.full.tensors()}, result.score

    (tensors, score), _ = together(2, work)
    assert score.count == serial.score.count
    assert score.loss == pytest.approx(serial.score.loss)
    for name, tensor in serial.full.tensors():
        torch.testing.assert_close(tensors[name], tensor, msg=name)


def test_a_loop_of_ones_own():
    graph = made_graph()
    data = clusters(graph, 2, 10, 2)
    by_train = run(data, graph, norm=None)
    torch.manual_seed(0)
    model = models.GraphSAGE(6, 8, 2, 3)
    with Session(
        model, plan=plan_of(None), algorithm=relay(2, local_steps=3), optimizer=adam, num_rounds=4,
        loss_fn=F.cross_entropy, test=Nodes(graph),
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                for inputs, y in data.batches(worker.number, worker.first_step, worker.num_steps):
                    batch = inputs.graph
                    output = worker.subnet(batch.x, batch.edge_index)[inputs.rows]
                    worker.step(F.cross_entropy(output, y), y)
        assert session.score(session.full()).loss == by_train.score.loss


def test_a_test_set_of_nodes_is_scored_on_them_alone():
    graph = made_graph()
    model = models.GCN(6, 8, 2, 3)
    outputs = model.eval()(graph.x, graph.edge_index, graph.edge_weight)[graph.test_mask]
    test = Nodes(graph, metrics={"first": lambda output, y: output[:, 0]})
    score = evaluate(model, F.cross_entropy, (test.inputs, test.labels), metrics=test.metrics, batch_size=7)
    assert score.count == 40
    assert score.loss == pytest.approx(F.cross_entropy(outputs, graph.y[graph.test_mask]).item())
    assert score.accuracy == (outputs.argmax(1) == graph.y[graph.test_mask]).double().mean().item()
    assert score.metrics["first"] == pytest.approx(outputs[:, 0].mean().item())
    assert Nodes(graph, torch.tensor([4, 2])).labels.tolist() == graph.y[[4, 2]].tolist()


class TakesData(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, data):
        return self.conv(data.x, data.edge_index, data.edge_weight)


def test_a_model_gets_what_its_forward_names_or_the_graph():
    graph = made_graph()
    conv = nn.GCNConv(6, 3)
    weighted = conv(graph.x, graph.edge_index, graph.edge_weight)
    plain = conv(graph.x, graph.edge_index)
    for model, expected in ((conv, weighted), (TakesData(conv), weighted), (by_name(conv), plain)):
        assert torch.equal(call(model, graph), expected)
        assert torch.equal(call(model, GraphInputs(graph, torch.tensor([3, 1]))), expected[[3, 1]])
        assert torch.equal(call(SideBySide([model, model]), graph), expected)
    with pytest.raises(ValueError, match=r"graph: no 'edge_index'.*it has .*\bx\b"):
        call(conv, Data(x=graph.x))


class TwoTypes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        types = [("author", "to", "paper"), ("paper", "to", "author")]
        self.first = nn.HeteroConv({kind: nn.SAGEConv((6, 6), 8) for kind in types})
        self.second = nn.HeteroConv({kind: nn.SAGEConv((8, 8), 3) for kind in types})

    def forward(self, x_dict, edge_index_dict):
        hidden = {kind: x.relu() for kind, x in self.first(x_dict, edge_index_dict).items()}
        return self.second(hidden, edge_index_dict)


@pytest.mark.parametrize("made", ["HeteroConv", "to_hetero"])
def test_heterogeneous_graphs(made):
    graph = hetero_graph()
    model = TwoTypes()
    if made == "to_hetero":
        model = nn.to_hetero(models.GraphSAGE((6, 6), 8, 2, 3), graph.metadata())
    batches = from_loaders([loader.DataLoader([graph], batch_size=1)] * 2)
    for data in (whole(graph, 2, mask=None), batches):
        result = train(
            model, F.cross_entropy, data, plan=discover(model, graph), algorithm=narrow(2, local_steps=2),
            optimizer=adam, num_rounds=2, test=Nodes(graph, None),
        )  # fmt: skip
        assert result.score.count == 9


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.GINConv(torch.nn.Linear(6, 8)), torch.nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        return self.second(nn.global_add_pool(self.first(x, edge_index).relu(), batch))


def test_whole_graphs_are_classified():
    rings = [
        Data(x=torch.randn(n, 6), edge_index=torch.arange(2 * n).reshape(2, n) % n, y=torch.tensor([n % 3]))
        for n in range(3, 9)
    ]
    model, together_ = Pooled(), Batch.from_data_list(rings)
    loaders = [loader.DataLoader(rings[w::2], batch_size=2, shuffle=True) for w in range(2)]
    test = GraphInputs(together_, torch.arange(6)), together_.y
    result = train(
        model, F.cross_entropy, loaders, plan=discover(model, together_), algorithm=relay(2, local_steps=2),
        optimizer=adam, num_rounds=2, test=test,
    )  # fmt: skip
    assert result.score.count == 6
