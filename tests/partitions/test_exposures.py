"""What participants see: against counting element by element, and the bound that ``Limited`` promises."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from zoo import METHODS, blobs, mlp

from skerry import Checkpoints, Clients, Plan, Session, exposure, ist, relay
from skerry.algorithms import asyncdrop, local_sgd
from skerry.partitions import Cyclic, Disjoint, Everything, Limited, Sampled
from skerry.plan import Axis
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import put_, take
from skerry.training import net_to_train

KINDS = {
    "disjoint": lambda n, seed: Disjoint(n, seed),
    "slow": lambda n, seed: Disjoint(n, seed, reshuffle=0.3, core=0.2),
    "cyclic": lambda n, seed: Cyclic(n),
    "everything": lambda n, seed: Everything(n),
    "sampled": lambda n, seed: Sampled((0.4,) * n, seed),
}


def counted(partition, plan, rounds, colluders):
    """The shares, with a mask per participant and tensor."""
    n = partition.num_workers
    seen = [{name: torch.zeros(shape, dtype=torch.bool) for name, shape in plan.shapes.items()} for _ in range(n)]
    units = torch.zeros(n, plan.num_units, dtype=torch.bool)
    for round in range(rounds):
        held = partition.assign(plan.axes, round)
        units |= held.held
        for w in range(n):
            cuts = Cuts(plan, held.units(w))
            for name, mask in seen[w].items():
                if (cut := cuts.of(name)) is not None:
                    put_(mask, torch.ones_like(take(mask, cut)), cut)
    total = sum(mask.numel() for mask in seen[0].values())
    best_units = best = 0.0
    for group in combinations(range(n), colluders):
        best_units = max(best_units, float(units[list(group)].any(0).double().mean()))
        masks = (torch.stack([seen[w][name] for w in group]).any(0) for name in seen[0])
        best = max(best, sum(int(mask.sum()) for mask in masks) / total)
    return best_units, best


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_it_is_what_counting_element_by_element_gives(kind, n, colluders, rounds, seed):
    colluders, (_, plan, _) = min(n, colluders), mlp()
    partition = KINDS[kind](n, seed)
    found = exposure(partition, plan, rounds, colluders)
    assert found.exact
    assert (found.units, found.elements) == pytest.approx(counted(partition, plan, rounds, colluders))


@pytest.mark.parametrize("colluders", [1, 2, 3])
def test_where_sets_or_pairs_are_too_many_it_is_a_bound(colluders, monkeypatch):
    partition, (_, plan, _) = Disjoint(5, 1), mlp()
    exact = exposure(partition, plan, 3, colluders)
    monkeypatch.setattr("skerry.partitions.exposures._MOST", 60)
    bound = exposure(partition, plan, 3, colluders)
    assert not bound.exact
    assert exact.units <= bound.units + 1e-9
    assert exact.elements <= bound.elements + 1e-9
    assert "at most" in str(bound) > str(exact)


@pytest.mark.parametrize("n", [2, 4, 5])
def test_a_relay_shows_every_worker_every_piece_within_n_rounds_and_replicas_all_at_once(n):
    model, plan, _ = mlp()
    nets = net_to_train(model, plan, relay(n))[1]
    shown = [exposure(relay(n).partition, nets, rounds) for rounds in range(1, n + 1)]
    assert [each.units for each in shown] == pytest.approx([k / n for k in range(1, n + 1)])
    assert shown[-1].elements == 1 > shown[-2].elements
    assert exposure(local_sgd(n).partition, plan, 1) == exposure(Everything(1), Plan.whole(model), 1)
    assert exposure(local_sgd(n).partition, plan, 1).elements == 1


def test_blocks_and_what_is_in_no_unit_count():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    plan = Plan((Axis("blocks", 2, "blocks"),), {}, {n: p.shape for n, p in model.named_parameters()}, {"1": 0, "2": 1})
    found = exposure(Disjoint(2), plan, 1)
    assert found.units == 0.5
    assert found.elements == pytest.approx((15 + 12) / (15 + 24))


def test_clients_see_what_they_have_trained():
    algorithm = asyncdrop(2, clients=Clients((1.0, 0.5, 0.2)), drop=0.5)
    axes, timeline = (Axis("a", 10),), algorithm.timeline()
    seen = torch.zeros(3, 10, dtype=torch.bool)
    for r in range(6):
        for turn in timeline.starting(r):  # also what nobody has replied to yet
            seen[turn.client] |= algorithm.partition.assign(axes, turn.number).held[0]
    assert exposure(algorithm.held_by(), axes, 6).units == pytest.approx(float(seen.double().mean(1).max()))
    assert asyncdrop(2, heterogeneous=True).held_by() is None


@settings(max_examples=25)
@given(st.integers(1, 8), st.sampled_from([0.15, 0.25, 0.34, 0.5, 0.6, 1.0]), st.integers(0, 40), st.integers(0, 3))
def test_limited_keeps_the_whole_log_of_everybody_under_the_bound(n, bound, more, seed):
    partition, axes = Limited(n, bound, seed), (Axis("a", n + more), Axis("b", 3 * n, start=n + more))
    if max(-(-axis.num_units // n) / axis.num_units for axis in axes) > bound:  # even with units that never move
        with pytest.raises(ValueError, match="max_exposure"):
            partition.assign(axes, 0)
        return
    held = torch.stack([partition.assign(axes, r).held for r in range(3 * n)])
    assert (held.sum(1) == 1).all()  # one holder
    for axis in axes:
        mine = held[:, :, list(axis.units)]
        assert (mine.any(0).double().mean(1) <= bound + 1e-9).all()
        assert (mine.sum(2) >= 1).all()
        m = -(-n // partition.num_groups(axis))
        groups = mine.any(0)  # units of a group: seen by all of its workers, each within a cycle
        for unit in range(axis.num_units):
            who = groups[:, unit].nonzero().flatten()
            assert m - 1 <= len(who) <= m
            assert torch.equal(mine[: len(who), :, unit].any(0).nonzero().flatten(), who)
    assert torch.equal(held[2 * n], Limited(n, bound, seed).assign(axes, 2 * n).held)


def test_a_limited_relay_is_a_relay_within_groups():
    model, plan, _ = mlp()
    for bound, seen, cycle in ((1.0, 1.0, 4), (0.5, 0.5, 2), (0.3, 0.25, 1)):
        still = r"max_exposure=0\.3 with 4 workers: nets never move, as in ensemble; 2/4 is the least"
        with pytest.warns(UserWarning, match=still) if cycle == 1 else nullcontext():
            algorithm = relay(4, max_exposure=bound)
        assert algorithm.rounds_per_cycle == cycle
        assert exposure(algorithm.partition, net_to_train(model, plan, algorithm)[1], 50).units == seen


def test_all_who_were_handed_a_net_have_seen_it():
    algorithm = asyncdrop(4, clients=Clients.spread(4), drop=0.5)
    held = [
        algorithm.partition.assign((Axis("a", 40),), turn.number).held[0] for turn in algorithm.timeline().starting(0)
    ]
    assert (
        exposure(algorithm.held_by(), (Axis("a", 40),), 1, colluders=4).units
        >= float(sum(held).bool().double().mean())
        > 0.6
    )


@pytest.mark.filterwarnings("ignore::skerry.training.TheoryWarning", "ignore:num_rounds")
def test_what_was_seen_before_other_workers_came_still_counts(tmp_path):
    shown = []
    for workers, rounds in ((2, 2), (3, 3), (3, 4)):
        model, plan, _ = mlp()
        session = Session(
            model, plan=plan, algorithm=ist(workers, local_steps=1), num_rounds=rounds,
            optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.01),
            checkpoints=Checkpoints(tmp_path, every_s=0, resume=rounds > 2),
        )  # fmt: skip
        data = blobs(workers)
        for round in session.rounds():
            for worker in round.workers:
                for x, y in data.batches(worker.client, worker.first_step, 1):
                    worker.step(F.cross_entropy(worker.subnet(x), y))
        shown += [record.exposure for record in session.history]
    assert len(shown) == 4
    assert shown == sorted(shown)
    alone = exposure(Disjoint(2), plan, 2).units
    assert shown[2] >= min(1, shown[1] + 1 / 4)
    assert shown[1] == pytest.approx(alone)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="colluders=4: expected at most 3"):
        exposure(Disjoint(3), (Axis("a", 6),), 1, colluders=4)
    with pytest.raises(ValueError, match="max_exposure=0: expected a fraction"):
        Limited(3, 0)
    with pytest.raises(
        ValueError, match=r"max_exposure=0\.2: axis 'nets'.*at least 1/4 \(1 of 4 units\), or more work"
    ):
        relay(4, max_exposure=0.2)
    for bound in (50, 1.5, float("nan"), 0):
        with pytest.raises(ValueError, match=f"max_exposure={bound}: expected a fraction"):
            relay(4, max_exposure=bound)
    with pytest.raises(ValueError, match=r"clients: max_exposure=0\.5 limits what a worker sees"):
        replace(relay(4, max_exposure=0.5), clients=Clients.spread(8))
    with pytest.raises(ValueError, match=r"Algorithm: expected a partition: algorithm\.held_by\(\)"):
        exposure(relay(4), (Axis("nets", 4),), 3)
    with pytest.raises(ValueError, match="partition=None: units are dealt by movement"):
        exposure(asyncdrop(2, heterogeneous=True, clients=Clients((1.0,) * 3)).held_by(), (Axis("a", 6),), 3)


@pytest.mark.parametrize("method", ["ist", "relay", "local_sgd", "narrow"])
def test_the_record_has_it(method):
    algorithm, (model, plan, _), data = METHODS[method].algorithm, mlp(), blobs(3)
    session = Session(model, plan=plan, algorithm=algorithm, optimizer=METHODS[method].optimizer, num_rounds=3)
    for round in session.rounds():
        for worker in round.workers:
            for x, y in data.batches(worker.client, worker.first_step, worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(x), y))
    shown = [exposure(algorithm.partition, session.plan, r + 1).units for r in range(3)]
    assert [record.exposure for record in session.history] == pytest.approx(shown)
