"""Servers that wait for nobody: against the papers' rules written as a loop, against IST and plain SGD, and resumed."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from zoo import blobs, mlp

from skerry import Checkpoints, Clients, Session, ist, relay, train
from skerry.algorithm import Algorithm
from skerry.algorithms import asyncdrop, fedbuff, local_sgd, single
from skerry.clients import Timeline
from skerry.merge.server import Server
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint, Sampled
from skerry.partitions.by_movement import kept_by_movement
from skerry.plan import Axis
from skerry.runtimes import Serial
from skerry.subnet import extract
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import put_, take

STEPS = 3
FIVE = Clients((1.0, 0.5, 0.3, 0.9, 0.25), seed=1)
METHODS = {
    "asyncdrop": asyncdrop(3, clients=FIVE, local_steps=STEPS, drop=0.4, weight=0.6),
    "heterogeneous": asyncdrop(3, clients=FIVE, local_steps=STEPS, drop=0.4, weight=0.6, heterogeneous=True),
    "fedbuff": fedbuff(3, clients=FIVE, local_steps=STEPS, buffer=2, weight=0.7),
}
WAITING = {"relay": replace(relay(3, local_steps=STEPS), clients=FIVE)}


def made(norm=False):
    torch.manual_seed(0)
    return mlp(norm=norm)[:2]


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1)


def go(algorithm, rounds, *, norm=False, **more):
    """Train, and return the tensors of the model as the server has them."""
    model, plan = made(norm)
    data = more.pop("data", None) or blobs(algorithm.num_parts)
    result = train(model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=rounds,
                   verify=False, **more)  # fmt: skip
    return {name: t.clone() for name, t in result.store.tensors.items()}


def same_bits(ours, meant):
    assert ours.keys() == meant.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, meant[name]), name


# ---- the clock

speeds = st.lists(st.sampled_from([1.0, 0.5, 0.3, 0.2]), min_size=1, max_size=7)


@settings(max_examples=25)
@given(speeds, st.data())
def test_as_many_clients_as_are_active_train_at_any_time_each_once(speeds, data):
    active, per_round = data.draw(st.integers(1, len(speeds))), data.draw(st.integers(1, 4))
    timeline = Timeline(Clients(tuple(speeds), seed=3), active=active, per_round=per_round, waits=False)
    rounds = [timeline.turns(r) for r in range(8)]
    ends = [timeline.ends(r) for r in range(8)]
    assert ends == sorted(ends)
    replied = [turn for turns in rounds for turn in turns]
    assert len({turn.number for turn in replied}) == len(replied)
    for r, turns in enumerate(rounds):
        assert all(turn.began <= r for turn in turns)
        begun = timeline.under_way(r) + timeline.starting(r)
        assert {turn.number for turn in turns} <= {turn.number for turn in begun}
    by_client = {}
    for turn in sorted(replied, key=lambda turn: turn.number):
        begins = turn.ends - 1 / speeds[turn.client]
        before = by_client.get(turn.client)
        assert before is None or (begins >= before.ends - 1e-9 and turn.nth == before.nth + 1)
        by_client[turn.client] = turn
        at = begins + 1e-3  # just after it began, `active` turns are under way
        running = {t.number for t in timeline._starts if t.ends - 1 / speeds[t.client] < at < t.ends}
        assert len(running) == active


@settings(max_examples=25)
@given(speeds, st.data())
def test_a_server_that_waits_takes_as_long_as_the_slowest(speeds, data):
    active = data.draw(st.integers(1, len(speeds)))
    timeline = Timeline(Clients(tuple(speeds)), active=active, per_round=active, waits=True)
    for r in range(5):
        turns, before = timeline.turns(r), timeline.ends(r - 1) if r else 0.0
        assert len({turn.client for turn in turns}) == active
        assert {turn.began for turn in turns} == {r}
        assert timeline.ends(r) - before == pytest.approx(max(1 / speeds[turn.client] for turn in turns))


def test_who_trains_when_follows_from_the_seed():
    def clients(seed):
        timeline = Timeline(replace(FIVE, seed=seed), active=2, per_round=1, waits=False)
        return [timeline.turns(r)[0].client for r in range(12)]

    assert clients(1) == clients(1) != clients(2)


# ---- the rules


def by_hand(algorithm, num_rounds):
    """The papers' rules with a queue of events and whole tensors, masks and all."""
    model, plan = made()
    data, server, buffer = blobs(algorithm.num_parts), algorithm.server, algorithm.partition.num_workers
    now, idle, running = 0.0, list(range(FIVE.num)), []
    timeline = algorithm.timeline()  # only asked whom it draws
    full = {n: t.clone() for n, t in named_tensors(model).items()}
    started, replies, rounds, nth = 0, [], 0, dict.fromkeys(idle, 0)
    while rounds < num_rounds:
        starts = [turn for turn in timeline.starting(rounds) if turn.number >= started]
        for turn in starts[: server.active - len(running)]:
            round, worker = divmod(turn.number, buffer)
            units = algorithm.partition.assign(plan.axes, round).units(worker)
            running.append((now + 1 / FIVE.speeds[turn.client], turn.client, units, copy.deepcopy(full)))
            started += 1
        running.sort(key=lambda each: each[0])
        now, client, units, began = running.pop(0)
        copy_of = copy.deepcopy(model)
        for name, tensor in named_tensors(copy_of).items():
            tensor.data.copy_(began[name])
        subnet = extract(copy_of, plan, units)
        optimizer = sgd(subnet)
        for x, y in data.batches(client, nth[client] * STEPS, STEPS):
            optimizer.zero_grad()
            F.cross_entropy(subnet(x), y).backward()
            optimizer.step()
        nth[client] += 1
        replies.append((units, began, {n: t.detach() for n, t in named_tensors(subnet).items()}))
        if len(replies) == buffer:
            for name, old in full.items():
                change = torch.zeros_like(old)
                for each, start, narrow in replies:
                    mask, reply = torch.zeros_like(old), torch.zeros_like(old)
                    cut = Cuts(plan, each).of(name)
                    put_(mask, torch.ones_like(take(old, cut)), cut)
                    put_(reply, narrow[name], cut)
                    if server.adds_moves:
                        change += server.weight * (reply - start[name]) * mask
                    else:
                        a = server.weight
                        change += (old * (1 - mask) + ((1 - a) * old + a * reply) * mask) - old
                full[name] = old + change / buffer
            replies, rounds = [], rounds + 1
    return full


@pytest.mark.parametrize("method", ["asyncdrop", "fedbuff"])
def test_late_replies_are_taken_in_by_the_rule_of_the_paper(method):
    algorithm = METHODS[method]
    assert max(r - turn.began for r in range(9) for turn in algorithm.timeline().turns(r)) > 1  # some are late
    ours, meant = go(algorithm, 9), by_hand(algorithm, 9)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, meant[name], atol=1e-6, rtol=1e-5, msg=lambda told, name=name: name + told)


@pytest.mark.parametrize("waits", [True, False])
def test_disjoint_pieces_at_equal_speeds_and_weight_1_are_ist(waits):
    meant = ist(3, local_steps=STEPS, seed=5)
    server = None if waits else Server(active=3, weight=1.0)
    ours = Algorithm(name="late", partition=Disjoint(3, 5), local_steps=STEPS, clients=Clients.spread(3), server=server)
    same_bits(go(ours, 4), go(meant, 4))


def test_one_client_that_drops_nothing_is_plain_sgd():
    same_bits(go(asyncdrop(1, drop=0.0, weight=1.0, local_steps=STEPS), 4), go(single(local_steps=STEPS), 4))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method):
    same_bits(go(METHODS[method], 6), go(METHODS[method], 6))


@pytest.mark.parametrize("method", ["asyncdrop", "heterogeneous"])
def test_what_a_client_does_not_have_keeps_its_bits_and_its_net_is_narrow(method):
    model, plan = made(norm=True)
    session = Session(model, plan=plan, algorithm=METHODS[method], optimizer=sgd, num_rounds=6)
    data, changed = blobs(5), 0
    for round in session.rounds():
        before = {n: t.clone() for n, t in session.setup.store.tensors.items()}
        cuts = Cuts(plan, session.setup.store.assignment.units(0))
        for worker in round.workers:
            assert worker.narrow.layers[0].weight.shape == (8, 9)  # of 13 units
            for x, y in data.batches(worker.client, worker.first_step, worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(x), y))
        for name, tensor in session.setup.store.tensors.items():
            expected = before[name].clone()
            put_(expected, take(tensor, cuts.of(name)), cuts.of(name))
            assert torch.equal(tensor, expected), name
            changed += int((tensor != before[name]).sum())
    assert changed


def test_a_reply_that_is_not_finite_is_left_out_and_the_server_goes_on():
    class Broken(type(blobs(5))):
        def batches(self, worker, first_step, num_steps):
            bad = worker == FIVE.speeds.index(1.0) and first_step == 0
            return ((x * math.nan if bad else x, y) for x, y in super().batches(worker, first_step, num_steps))

    data = blobs(5)
    data.__class__ = Broken
    with pytest.warns(UserWarning, match="refused|NaN"):
        ours = go(METHODS["asyncdrop"], 8, data=data)
    assert all(t.isfinite().all() for t in ours.values())


# ---- dropping by movement


@settings(max_examples=25)
@given(st.integers(1, 30), st.sampled_from([0.0, 0.25, 0.5, 0.9]), st.floats(0, 1), st.integers(0, 3))
def test_by_movement_each_client_drops_as_many_units_in_a_row(num, drop, rank, seed):
    axes = (Axis("a", num), Axis("b", 4, start=num))
    moved = torch.rand(num + 4, generator=torch.Generator().manual_seed(seed))
    kept = kept_by_movement(axes, moved, drop, rank, seed)
    for axis in axes:
        mine = kept[(kept >= axis.start) & (kept < axis.units.stop)]
        assert len(mine) == Sampled((1 - drop,), 0).assign(axes, 0).held[0, axis.units].sum()
        places = moved[list(axis.units)].argsort(descending=True).argsort()[mine - axis.start]
        dropped = sorted(set(range(axis.num_units)) - set(places.tolist()))
        assert not dropped or dropped == list(range(dropped[0], dropped[-1] + 1))
        assert not dropped or abs(dropped[0] - rank * (axis.num_units - len(dropped))) <= 0.5


def test_the_fastest_client_drops_what_moved_most_in_the_last_update_that_had_it():
    model, plan = made()
    algorithm = METHODS["heterogeneous"]
    session = Session(model, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=6)
    store, data, moved = session.setup.store, blobs(5), torch.zeros(plan.num_units)
    for round in session.rounds():
        before = {n: t.clone() for n, t in store.tensors.items()}
        for worker in round.workers:
            held = store.assignment.held[0]
            for x, y in data.batches(worker.client, worker.first_step, worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(x), y))
        start = 0
        for layer, axis in enumerate(plan.axes):
            moves = [
                (store.tensors[f"layers.{layer}.{p}"] - before[f"layers.{layer}.{p}"]).abs() for p in ("weight", "bias")
            ]
            each = torch.cat([moves[0], moves[1][:, None]], 1).mean(1)
            now = torch.arange(start, start := start + axis.num_units)
            moved[now] = torch.where(held[now], each, moved[now])
        for turn in session.setup.timeline.starting(round.number + 1):
            kept = kept_by_movement(plan.axes, moved, 0.4, FIVE.rank(turn.client), 1, "moved", turn.number)
            assert torch.equal(store._begun[turn.number].units, kept)


# ---- the house


@pytest.mark.parametrize("method", METHODS | WAITING)
def test_a_resumed_training_has_the_same_bits(method, tmp_path):
    algorithm = (METHODS | WAITING)[method]

    def part(rounds, resume):
        return go(algorithm, rounds, norm=True, checkpoints=Checkpoints(tmp_path, every_s=0, resume=resume))

    part(5, False)
    same_bits(part(11, True), go(algorithm, 11, norm=True))


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [(asyncdrop(4, drop=0.5), None), (relay(2, nets=8), r"nets rest in turn, so 1 rounds .* all 2 workers, and 8")],
)
def test_the_skew_of_one_client_is_unknown_and_nets_that_rest_are_told(algorithm, told):
    model, plan, _ = mlp()
    with pytest.warns(Warning, match=told) if told else nullcontext():
        session = Session(
            model, plan=plan, algorithm=algorithm, optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1),
            num_rounds=1,
        )  # fmt: skip
        data = blobs(algorithm.num_parts)
        for worker in next(session.rounds()).workers:
            for x, y in data.batches(worker.client, worker.first_step, worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(x), y), y)
    assert (session._round.diagnosis.label_skew is None) is (told is None)


def test_clients_of_another_seed_cannot_go_on_with_what_is_under_way(tmp_path):
    algorithm = asyncdrop(4, clients=Clients((1.0,) * 8, seed=1), drop=0.5)
    go(algorithm, 1, checkpoints=Checkpoints(tmp_path, every_s=0))
    with pytest.raises(ValueError, match="other clients were under way"):
        go(replace(algorithm, clients=Clients((1.0,) * 8, seed=2)), 5, checkpoints=Checkpoints(tmp_path, resume=True))


def test_other_clients_cannot_go_on_with_what_is_under_way(tmp_path):
    algorithm = METHODS["asyncdrop"]
    go(algorithm, 4, checkpoints=Checkpoints(tmp_path, every_s=0))
    other = replace(algorithm, server=replace(algorithm.server, active=5))
    assert "under way" in other.why_same_workers
    with pytest.raises(ValueError, match="other clients were under way"):
        go(other, 8, checkpoints=Checkpoints(tmp_path, resume=True))


def test_methods_that_wait_train_on_the_data_of_other_clients_in_each_round():
    model, plan = made()
    algorithm, data = WAITING["relay"], blobs(5)
    session = Session(model, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=8)
    steps = dict.fromkeys(range(5), 0)
    for round in session.rounds():
        for worker in round.workers:
            assert worker.first_step == steps[worker.client]
            steps[worker.client] += worker.num_steps
            for x, y in data.batches(worker.client, worker.first_step, worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(x), y))
    assert sum(steps.values()) == 8 * 3 * STEPS
    assert min(steps.values()) > 0
    clocks = [record.clock for record in session.history]
    assert clocks == [session.setup.timeline.ends(r) for r in range(8)] == sorted(clocks)


def test_priors_are_those_of_the_client():
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    whole = fedbuff(1, clients=Clients((1e-9, 1e-9, 1e-9, 1.0, 1e-9)), local_steps=STEPS, buffer=1)
    who = [turn.client for turn in (whole.timeline().turns(r)[0] for r in range(2))]
    same = torch.zeros(5, 4)
    same[who] = rows[who]
    same_bits(go(whole, 2, logit_adjustment=rows), go(whole, 2, logit_adjustment=same))
    assert not torch.equal(go(whole, 2, logit_adjustment=rows)["out.bias"], go(whole, 2)["out.bias"])


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="9 workers train at a time, but there are 5 clients"):
        asyncdrop(9, clients=FIVE)
    with pytest.raises(ValueError, match="drop=1: expected a fraction"):
        asyncdrop(2, drop=1)
    with pytest.raises(ValueError, match=r"weight=1\.5"):
        asyncdrop(2, weight=1.5)
    with pytest.raises(ValueError, match="expected a positive number per client"):
        Clients((1.0, 0.0))
    with pytest.raises(ValueError, match=r"slowest=0\.5"):
        Clients.spread(3, 0.5)
    with pytest.raises(ValueError, match="cannot keep state"):
        replace(local_sgd(2, optimizer_state="stay"), clients=FIVE)
    with pytest.raises(ValueError, match="split for 3 workers, but algorithm 'asyncdrop' has 5 clients"):
        go(METHODS["asyncdrop"], 2, data=blobs(3))


def test_clients_run_in_one_process():
    runtime = Serial()
    runtime.num_processes = 2
    model, plan = made()
    with pytest.raises(ValueError, match="clients: 'asyncdrop' runs them in one process"):
        Session(model, plan=plan, algorithm=METHODS["asyncdrop"], optimizer=sgd, num_rounds=2, runtime=runtime)
