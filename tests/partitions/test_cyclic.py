"""Cyclic dealing with more places than workers, against as many workers of which some are refused."""

import pytest
import torch
from torch import nn, optim

from skerry import Session, discover, relay
from skerry.partitions import Cyclic
from skerry.plan import Axis


def test_fewer_workers_hold_what_the_first_of_all_would():
    axes = (Axis("nets", 5), Axis("more", 7, start=5))
    for round in range(11):
        held = Cyclic(3, num_places=5).assign(axes, round).held
        assert torch.equal(held, Cyclic(5).assign(axes, round).held[:3])
    with pytest.raises(ValueError, match="num_places=2: expected at least"):
        Cyclic(3, num_places=2)


def test_sets_that_stay_are_trained_in_turn_by_the_same_worker():
    axes = (Axis("nets", 5), Axis("more", 7, start=5))
    of_all = Cyclic(5, moves=False).assign(axes, 9).held
    for round in range(6):
        held = Cyclic(3, moves=False, num_places=5).assign(axes, round).held
        assert torch.equal(held, of_all[[0, 1, 2] if round % 2 == 0 else [3, 4, 2]])


def _trained(workers, nets):
    """Train seven rounds; workers from the third one on are refused."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 15), nn.BatchNorm1d(15), nn.ReLU(), nn.Linear(15, 3)
    )
    session = Session(
        model, plan=discover(model, torch.randn(20, 6)), algorithm=relay(workers, nets=nets, local_steps=3),
        optimizer=lambda net: optim.SGD(net.parameters(), 0.1), num_rounds=8, max_bad_rounds=9,
    )  # fmt: skip
    for round in session.rounds():
        if round.number == 6:
            session.stop()
        for worker in round.workers:
            rng = torch.Generator().manual_seed(100 * worker.number + round.number)
            for _ in range(worker.num_steps):
                x, y = torch.randn(8, 6, generator=rng), torch.randint(3, (8,), generator=rng)
                loss = nn.functional.cross_entropy(worker.subnet(x), y)
                worker.step(loss * float("nan") if worker.number >= 3 else loss)
    return dict(session.full(torch.randn(50, 6, generator=torch.Generator().manual_seed(1))).tensors())


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning")
def test_a_relay_with_resting_nets_is_one_in_which_the_other_workers_are_refused():
    few, all_workers = _trained(3, 5), _trained(5, None)
    assert few.keys() == all_workers.keys()
    assert all(torch.equal(few[name], all_workers[name]) for name in few)
