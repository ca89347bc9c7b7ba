"""Warnings that need no training: they come before the first step, and again in the files of the first round."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skerry import Session, discover, ensemble, ist, narrow, relay
from skerry.algorithms import local_sgd
from skerry.training import TheoryWarning

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def session(algorithm, hidden=32, bottleneck=8, keep=(), rounds=4):
    layers = [nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, bottleneck), nn.ReLU(), nn.Linear(bottleneck, 16)]
    model = nn.Sequential(*layers)
    plan = discover(model, X)
    plan = plan.without(*keep) if keep else plan
    return Session(
        model, plan=plan, algorithm=algorithm, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), num_rounds=rounds
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


def _rounds(trained: Session) -> list[dict[str, str]]:
    found = []
    with trained:
        for round in trained.rounds():
            for worker in round.workers:
                for _ in range(worker.num_steps):
                    worker.step(F.mse_loss(worker.subnet(X), X))
            found.append(round.diagnosis.warnings)
    return found
