"""Warnings that need no training: they come before the first step, and again in the files of the first round."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skerry import Clients, Session, discover, ensemble, ist, narrow, relay
from skerry.algorithms import fedrolex, local_sgd
from skerry.partitions import Assignment
from skerry.plan import In, Out, Plan
from skerry.runtimes import Serial
from skerry.training import TheoryWarning
from skerry.training.agreement import in_words, session_in_words
from skerry.training.diagnosis.untrained_pairs import untrained_pairs
from skerry.training.settings import Settings
from skerry.training.steps.schedules import constant
from skerry.training.steps.settings import StepSettings

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def session(algorithm, hidden=32, bottleneck=8, keep=(), rounds=4):
    layers = [nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, bottleneck), nn.ReLU(), nn.Linear(bottleneck, 16)]
    model = nn.Sequential(*layers)
    plan = discover(model, X)
    plan = plan.without(*keep) if keep else plan
    return Session(
        model, plan=plan, algorithm=algorithm, optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
        num_rounds=rounds,
    )  # fmt: skip


@pytest.mark.parametrize("method", [ist, relay, ensemble, narrow])
def test_a_bottleneck_is_told_before_training(method):
    with pytest.warns(TheoryWarning, match=r"'2'.*\b8\b.*\b2\b"):
        trained = session(method(4, local_steps=2))
    (first, second, *_) = _rounds(trained)
    assert "bottleneck" in first
    assert "bottleneck" not in second


@pytest.mark.filterwarnings("error::skerry.training.TheoryWarning")
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (ist(2, local_steps=2), {}),
        (ist(4, local_steps=2), {"keep": ["2"]}),
        (ist(4, local_steps=2, core=0.5), {}),
        (local_sgd(4, local_steps=2), {}),
        (narrow(4, local_steps=2, width=0.5), {}),
    ],
)
def test_no_bottleneck_is_told_where_a_subnet_has_enough_units(algorithm, settings):
    session(algorithm, **settings)


def test_too_few_rounds_are_told_before_training():
    with pytest.warns(TheoryWarning, match="few rounds"):
        session(relay(4, local_steps=2), hidden=64, bottleneck=32, rounds=3)
    with pytest.warns(TheoryWarning, match="only 11 of 12 clients .* at least 12 rounds"):
        session(replace(relay(4, local_steps=2), clients=Clients((1.0,) * 12)), hidden=64, bottleneck=32, rounds=11)


class Stream(nn.Module):
    """A residual stream of 8 groups, 2 channels each, with a norm per group."""

    def __init__(self, groups=8):
        super().__init__()
        self.read, self.norm = nn.Linear(16, 16), nn.GroupNorm(groups, 16)
        self.block, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.read(x)
        return self.out(x + self.block(self.norm(x).relu()))


def stream(algorithm, rounds=20, groups=8):
    model, sgd = Stream(groups), lambda net: torch.optim.SGD(net.parameters(), lr=0.1)
    return Session(model, plan=discover(model, X), algorithm=algorithm, optimizer=sgd, num_rounds=rounds)


def test_one_unit_per_worker_of_a_residual_stream_is_told_before_training():
    plan = discover(Stream(), X)
    assert [text.split(":")[0] for text in plan.warnings(workers=8)] == ["one unit per worker"]
    assert plan.warnings(workers=4) == ()
    with pytest.warns(TheoryWarning, match=r"^one unit per worker: .*\b8 units\b.*block\.weight"):
        assert "one unit per worker" in _rounds(stream(ist(8, local_steps=1)))[0]


@pytest.mark.filterwarnings("error::skerry.training.TheoryWarning")
@pytest.mark.parametrize(
    "algorithm",
    [ist(4, local_steps=2), ist(8, local_steps=2, core=0.75), relay(8, local_steps=2), narrow(8, local_steps=2),
     local_sgd(8, local_steps=2)],
)  # fmt: skip
def test_lone_units_are_not_told_where_no_weight_stays_untrained(algorithm):
    stream(algorithm)


@pytest.mark.parametrize(
    ("algorithm", "rounds", "expected"),
    [
        (ist(4, local_steps=2), 3, 0.75**3),
        (ist(4, local_steps=2, reshuffle=0.0), 50, 0.75),
        (ist(4, local_steps=2, core=0.5), 3, 0.5**2 * 0.75**3),
        (ist(4, local_steps=2), 50, 0.0),
        (local_sgd(4, local_steps=2), 1, 0.0),
        (fedrolex(2, fractions=(0.25, 0.25), local_steps=2), 1, 0.0),  # what nobody holds is a matter of coverage
    ],
)
def test_weights_between_units_that_never_meet_are_counted_as_they_are(algorithm, rounds, expected):
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    plan = discover(model, X)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    held = [algorithm.partition.assign(plan.axes, r).held.float() for r in range(rounds)]
    found, where = untrained_pairs(plan, sizes, lambda r: Assignment(held[r] > 0), rounds)
    reads, makes = (torch.cat(held)[:, axis.units] for axis in plan.axes)
    never = (makes.mT @ reads == 0) & (makes.sum(0) > 0)[:, None] & (reads.sum(0) > 0)
    exact = float(never.double().mean())
    assert found == pytest.approx(exact, abs=0.01)
    assert found == pytest.approx(expected, abs=0.06)
    assert found == 0.0 or where == "between axes '0' and '2'"


def test_an_optimizer_that_allocates_at_once_is_compared_without_the_memory_of_the_model():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**6, 10**6), nn.Linear(10**6, 4))  # 4 TB
    plan = Plan.from_rules(model, {"0": Out("a"), "1": In("a")})
    given = Settings(
        model=model, plan=plan, algorithm=ist(2), optimizer=lambda net: torch.optim.Adagrad(net.parameters(), 0.25),
        num_rounds=1, schedule=constant, steps=StepSettings(), seed=0, checkpoints=None, max_bad_rounds=1, loss_fn=None,
        runtime=Serial(), device=torch.device("meta"), private=None,
    )  # fmt: skip
    words = session_in_words(given)
    assert (words["optimizer"], words["optimizer.lr"]) == ("Adagrad", "0.25")


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, torch.tensor])
def test_numbers_are_compared_by_value(kind):
    assert dict(in_words({"lr": kind(0.25)})) == {"lr": "0.25"}


def _rounds(trained: Session) -> list[dict[str, str]]:
    found = []
    with trained:
        for round in trained.rounds():
            for worker in round.workers:
                for _ in range(worker.num_steps):
                    worker.step(F.mse_loss(worker.subnet(X), X))
            found.append(round.diagnosis.warnings)
    return found
