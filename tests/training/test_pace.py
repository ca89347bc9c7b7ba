"""Local steps by measured speed, against what the speeds of a made-up clock say."""

import pytest
import torch
from torch import nn, optim

from skerry import Checkpoints, Session, discover, ist
from skerry.checkpoint.state import State
from skerry.training.steps.pace import forget_workers

SPEEDS = (1.0, 2.0, 4.0)


def _session(folder=None, resume=False, workers=3, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    return Session(
        model, plan=discover(model, torch.randn(20, 6)), num_rounds=6, deadline="adaptive",
        algorithm=ist(workers, local_steps=8, **settings), optimizer=lambda net: optim.SGD(net.parameters(), 0.1),
        checkpoints=None if folder is None else Checkpoints(folder, every_s=0, resume=resume),
    )  # fmt: skip


@pytest.fixture
def rounds(monkeypatch):
    """Train with workers of known speeds; return the records, weights, what is observed at first, and batches."""
    monkeypatch.setattr("skerry.training.check.Serial", ())  # no other runtime takes as little time

    def train(rounds, folder=None, *, fails=None, **settings):
        session, seen = _session(folder, **settings), {}
        began_with = dict(session.state.observed)
        for round in session.rounds():
            for worker in round.workers:
                for step in range(worker.first_step, worker.first_step + worker.num_steps):
                    seen.setdefault(worker.number, []).append(step)
                    rng = torch.Generator().manual_seed(100 * worker.number + step)
                    x, y = torch.randn(8, 6, generator=rng), torch.randint(3, (8,), generator=rng)
                    scale = torch.nan if (worker.number, round.number) == fails else 1.0
                    worker.step(loss := scale * nn.functional.cross_entropy(worker.subnet(x), y))
                if not worker.stopped:
                    with pytest.raises(ValueError, match=f"takes worker.num_steps={worker.num_steps} in this round"):
                        worker.step(loss)
                worker.local_s = worker.steps_done / SPEEDS[worker.number]
            if round.number == rounds - 1:
                session.stop()
        weights = [t.clone() for _, t in session.full().tensors()]
        return session.history, weights, began_with, list(seen.values())

    return train


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
def test_each_worker_takes_as_many_steps_as_its_speed_allows_also_after_a_resume(rounds, tmp_path):
    history, weights, _, seen = rounds(6)
    assert [record.local_steps for record in history] == [(8, 8, 8), *[(2, 4, 8)] * 5]
    assert history[-1].local_s == (2.0, 2.0, 2.0)  # nobody waits
    assert seen == [list(range(num)) for num in (18, 28, 48)]  # nobody leaves a batch out
    rounds(3, tmp_path)
    resumed, after, began_with, later = rounds(6, tmp_path, resume=True)
    assert {"speeds", "steps taken"} <= began_with.keys()
    assert [record.local_steps for record in resumed] == [(2, 4, 8)] * 3
    assert later == [list(range(num - 3 * each, num)) for num, each in ((18, 2), (28, 4), (48, 8))]
    assert all(map(torch.equal, after, weights))


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
def test_what_was_measured_of_workers_is_forgotten_with_other_ones(rounds, tmp_path):
    rounds(3, tmp_path)
    resumed, _, began_with, seen = rounds(4, tmp_path, resume=True, workers=2)
    assert not {"speeds", "moves", "steps taken"} & began_with.keys()
    assert "train loss" in began_with
    assert resumed[0].local_steps == (8, 8)
    assert seen == [list(range(24, 32))] * 2
    state = State(0, torch.zeros(1), observed={"speeds": [1.0], "moves": [2.0], "train loss": [3.0]})
    forget_workers(state)
    assert state.observed == {"train loss": [3.0]}


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
@pytest.mark.parametrize("fails", [(0, 2), (2, 3)])
def test_a_refused_worker_which_stops_early_keeps_its_speed(rounds, fails):
    assert [record.local_steps for record in rounds(6, fails=fails)[0][1:]] == [(2, 4, 8)] * 5


def test_workers_that_need_each_other_or_take_turns_are_refused():
    with pytest.raises(ValueError, match="'ist' need each other"):
        _session(overlap=2)
    with pytest.raises(ValueError, match="deadline='adaptive': 3 workers take turns in this process"):
        _session()
