"""``skerry plan``: bytes against those that real runs count, memory against nothing allocated, and what is refused."""

import re
import resource
import sys

import pytest
import torch
from together import together
from torch.nn import functional as F

from skerry import Session, Shards, split
from skerry.experiments import planner
from skerry.experiments.cli import call
from skerry.experiments.methods import build
from skerry.experiments.planner import forecast, forecasts, subject
from skerry.experiments.runs.execute import make_optimizer

OTHERS = ["ist", "relay", "local_sgd", "heterofl", "diloco"]
NETS = """
import torch
from torch import nn

def net(hidden=96, device=None):
    with torch.device(device or "cpu"):
        return nn.Sequential(
            nn.Linear(20, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 5)
        )

def small():
    return net(), torch.randn(8, 20)

def huge():
    return net(2**15, "meta"), torch.empty(8, 20)

def normed():
    net = nn.Sequential(nn.Linear(20, 16), nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    return net, torch.randn(8, 20)

def bare():
    return net()

class Looks(nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        return out * (2.0 if out.sum().item() > 0 else 1.0)

def looks():
    return Looks(20, 4, device="meta"), torch.empty(8, 20)

def of_clients():
    from skerry import discover
    from skerry.experiments.config import Config
    from skerry.experiments.recipes import Recipe, Task
    x, y = torch.randn(60, 20), torch.arange(60) % 5
    task = Task(train=(x, y), test=(x, y), classes=tuple("abcde"))
    config = Config(method="asyncdrop", workers=2, clients=3, local_steps=2, batch_size=8)
    model = lambda *_: (net(), discover(net(), x[:8]))
    return Recipe(
        summary="", config=config, methods={"asyncdrop": {}, "local_sgd": {}}, task=lambda config: task, model=model
    )
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(planner, "_rate", lambda: 1e9)
    yield
    sys.modules.pop("nets", None)


@pytest.mark.parametrize("method", ["ist-travel", "narrow", *(pytest.param(m, marks=pytest.mark.slow) for m in OTHERS)])
def test_bytes_are_those_that_a_run_counts(method, monkeypatch):
    method, _, travels = method.partition("-")
    settings = {"workers": 3, "rounds": 3, "local_steps": 2, "batch_size": 8}
    settings |= {"optimizer_state": "travel", "optimizer.name": "Adam", "optimizer.lr": 0.01} if travels else {}
    about = subject("nets.py:small")
    config = about.config(method, settings)
    predicted = forecast(about, config)
    x, y = torch.randn(60, 20), torch.arange(60) % 5
    data = Shards(x, y, split(y, 3, "iid", seed=0), batch_size=8, seed=0)

    def work(member):
        torch.manual_seed(0)
        scope = {}
        exec(NETS, scope)
        session = Session(
            scope["net"](), plan=about.job(config)[1], algorithm=build(config), optimizer=make_optimizer(config),
            num_rounds=3, runtime=member,
        )  # fmt: skip
        with session:
            for round in session.rounds():
                for worker in round.workers:
                    for inputs, labels in data.batches(worker.number, worker.first_step, worker.num_steps):
                        worker.step(F.cross_entropy(worker.subnet(inputs), labels))
        return [*(session.state.totals[key] / 3 for key in ("bytes_due", "bytes_sent")), member.wire.buffer_bytes]

    due, sent, buffers = torch.tensor(together(3, work, chunk=2**22)).T
    assert buffers.max() <= predicted.memory.buffers < 2**20
    assert predicted.sent == pytest.approx(float(due[0]), rel=0.01)
    assert predicted.sent == pytest.approx(float(sent.mean()), rel=0.1)  # messages are padded
    assert predicted.busiest >= predicted.sent
    of_one = config.change({"rounds": 100})
    expected = forecast(about, of_one)
    monkeypatch.setattr(planner, "_ALL_AT_ONCE", 2)
    assert expected.sent * 0.9 < forecast(about, of_one).sent < expected.busiest * 1.1


def test_a_model_of_gigabytes_is_planned_without_allocating_it(capsys):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, message = call(
        [
            "plan",
            "nets.py:huge",
            "--workers",
            "8",
            "--methods",
            "relay,local_sgd",
            "--link",
            "100mbit",
            "--memory",
            "3GB",
        ]
    )
    assert (code, message) == (0, "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    told = capsys.readouterr().out
    assert re.search(r"4\.3 GB of parameters, 8 workers, 100mbit links", told)
    assert re.search(r"local_sgd: does not fit into 3GB: \d+(\.\d+)? GB too much", told)
    assert re.search(r"local_sgd: .* s, at least: .* TFLOP", told)
    assert re.search(r"relay: .* s, measured", told)
    assert "advised: relay" in told


def test_seconds_follow_from_bytes_link_and_steps(capsys):
    for link, slower in (("1mbit", 1), ("0.5 Mbit", 2)):
        assert call(["plan", "nets:small", "--methods", "narrow", "--link", link, "--set", "local_steps=7"])[0] == 0
        row = re.search(r"^narrow +7 +(.*)$", capsys.readouterr().out, re.MULTILINE)[1]
        *figures, seen = row.split()
        assert seen == "100%"  # of one narrow net
        sent, memory, local_s, exchange_s, round_s = map(float, figures)
        assert exchange_s == pytest.approx(8 * sent * slower, rel=0.01)
        assert round_s == pytest.approx(local_s + exchange_s, rel=0.02)
        assert memory > 0


def test_the_method_of_a_recipe_is_planned_too(capsys):
    assert call(["plan", "nets:of_clients"]) == (0, "")
    assert re.findall(r"^(\w+) +2 ", capsys.readouterr().out, re.MULTILINE) == ["local_sgd", "asyncdrop"]


def test_what_cannot_be_is_told_with_its_reason_and_the_rest_goes_on(capsys):
    assert call(["plan", "nets:normed", "--workers", "4"]) == (0, "")
    told = capsys.readouterr().out
    assert re.search(r"^relay: not possible: 0\.weight is on every worker.*use ist or narrow\b", told, re.MULTILINE)
    assert re.search(r"advised: narrow: a relay is not possible", told)
    assert "normalised over" in told  # the plan's own reasons


def test_how_steps_are_taken_counts():
    about = subject("nets:small")
    given = [{}, {"accumulate": 4}, {"precision": "bf16"}]
    whole, parts, half = (forecast(about, about.config("relay", settings)).memory.step for settings in given)
    assert parts.activations < 0.5 * whole.activations
    assert half.activations < whole.activations
    assert parts.flop == half.flop == whole.flop


def test_settings_go_to_the_methods_that_take_them():
    about = subject("nets:small")
    (one, two), why_not = forecasts(about, ["ist", "narrow"], {"partition.core": 0.5, "workers": 2})
    assert (one.config.partition.core, two.config.partition.core, why_not) == (0.5, 0.0, {})


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["nets:bare"], r"nets:bare: it returns Sequential, expected a model and example inputs"),
        (["nets:nett"], r"'nett'; did you mean 'net'"),
        (["net"], r"unknown recipe 'net'"),
        (["nets:small", "--link", "fast"], r"--link fast: expected a number and one of kbit, mbit, gbit"),
        (["nets:small", "--link", "100mbps"], r"--link 100mbps"),
        (["nets:small", "--link", "0mbit"], r"--link 0mbit"),
        (["nets:small", "--memory", "2"], r"--memory 2: .*such as 2GB"),
        (["nets:small", "--methods", "relais"], r"'relais'; did you mean 'relay'"),
        (["nets:small", "--methods", "narrow", "--set", "partition.core=.1"], r"partition\.core: none of narrow"),
        (["nets:small", "--set", "locl_steps=1"], r"'locl_steps'; did you mean 'local_steps'"),
        (["nets:small", "--memory", "0.01MB"], r"nothing fits into 0.01MB per worker: .* needs .*kB, .*kB too much"),
        (["nets:small", "--workers", "97", "--methods", "ist"], r"none of ist is possible"),
        (["nets:looks"], r"on meta.*looks at"),
    ],
)
def test_each_mistake_is_one_line_and_an_error(words, names):
    code, message = call(["plan", *words])
    assert code != 0
    assert re.search(names, message)
    assert "\n" not in message


def test_a_recipe_is_planned_with_its_own_settings(capsys):
    assert call(["plan", "digits-mlp", "--workers", "8", "--methods", "relay,local_sgd"]) == (0, "")
    told = capsys.readouterr().out
    assert re.search(r"digits-mlp: 106 kB of parameters, 8 workers, 1gbit links, SGD, lr=0\.1, momentum=0\.9", told)
    assert re.search(r"^relay +20 ", told, re.MULTILINE)
    assert re.search(r"^local_sgd +12 ", told, re.MULTILINE)


def test_a_method_with_settings_of_its_own_does_not_hide_the_others():
    found, why_not = forecasts(subject("nets:small"), ["ist", "single"], {"workers": 3})
    assert [f.method for f in found] == ["ist"]
    assert "one worker" in why_not["single"]


def test_an_elastic_run_sends_and_keeps_copies_too():
    about = subject("nets.py:small")
    config = about.config("ist", {"workers": 3})
    plain, elastic = (forecast(about, config, elastic=each) for each in (False, True))
    assert plain.memory.copies == 0
    assert elastic.sent - plain.sent == pytest.approx(elastic.memory.copies / 2, rel=0.1)  # its own piece, and another
    assert elastic.memory.training - plain.memory.training == elastic.memory.copies
    with pytest.raises(ValueError, match="'ddp' cannot run with processes that come and go"):
        forecast(about, about.config("ddp", {"workers": 3}), elastic=True)
    for method in ("relay", "ensemble"):
        nets = forecast(about, about.config(method, {"workers": 3}), elastic=True)  # as ``train`` runs it
        assert (nets.config.nets, nets.memory.copies > 0) == (3, True)
