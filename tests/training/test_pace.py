"""Local steps by measured speed, against what the speeds of a made-up clock say."""

import pytest
import torch
from torch import nn, optim

from skerry import Checkpoints, Session, discover, ist
from skerry.checkpoint.state import State
from skerry.training.steps.pace import forget_workers

SPEEDS = (1.0, 2.0, 4.0)


def _rounds(rounds, folder=None, resume=False, workers=3, **settings):
    """Train with workers of known speeds; return the records, the weights, and what is observed at first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    session = Session(
        model, plan=discover(model, torch.randn(20, 6)), num_rounds=6, deadline="adaptive",
        algorithm=ist(workers, local_steps=8, **settings), optimizer=lambda net: optim.SGD(net.parameters(), 0.1),
        checkpoints=None if folder is None else Checkpoints(folder, every_s=0, resume=resume),
    )  # fmt: skip
    began_with = dict(session.state.observed)
    for round in session.rounds():
        for worker in round.workers:
            rng = torch.Generator().manual_seed(100 * worker.number + worker.first_step)
            for _ in range(worker.num_steps):
                x, y = torch.randn(8, 6, generator=rng), torch.randint(3, (8,), generator=rng)
                worker.step(nn.functional.cross_entropy(worker.subnet(x), y))
            worker.local_s = worker.num_steps / SPEEDS[worker.number]
        if round.number == rounds - 1:
            session.stop()
    return session.history, {name: t.clone() for name, t in model.named_parameters()}, began_with


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
def test_each_worker_takes_as_many_steps_as_its_speed_allows_also_after_a_resume(tmp_path):
    history, weights, _ = _rounds(6)
    assert [record.local_steps for record in history] == [(8, 8, 8), *[(2, 4, 8)] * 5]
    assert history[-1].local_s == (2.0, 2.0, 2.0)  # nobody waits
    _rounds(3, tmp_path)
    resumed, after, began_with = _rounds(6, tmp_path, resume=True)
    assert "speeds" in began_with
    assert [record.local_steps for record in resumed] == [(2, 4, 8)] * 3
    assert all(torch.equal(after[name], weights[name]) for name in weights)


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
def test_what_was_measured_of_workers_is_forgotten_with_other_ones(tmp_path):
    _rounds(3, tmp_path)
    resumed, _, began_with = _rounds(4, tmp_path, resume=True, workers=2)
    assert "speeds" not in began_with
    assert "train loss" in began_with
    assert resumed[0].local_steps == (8, 8)
    state = State(0, torch.zeros(1), observed={"speeds": [1.0], "moves": [2.0], "train loss": [3.0]})
    forget_workers(state)
    assert state.observed == {"train loss": [3.0]}


def test_workers_that_need_each_other_are_refused():
    with pytest.raises(ValueError, match="'ist' need each other"):
        _rounds(1, overlap=2)
