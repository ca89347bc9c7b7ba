"""Elastic runs in real processes, against a serial run in which the lost worker is refused and others go on."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from machines import start_on_machines
from safetensors.torch import load_file
from torch import nn, optim

from skerry import Checkpoints, Clients, Session, discover, ist
from skerry.runtimes.distributed.meeting import PeerLost
from skerry.runtimes.distributed.sharded import Sharded
from skerry.runtimes.elastic import Elastic, serve_store
from skerry.runtimes.elastic.generation import Generation, why_not_elastic
from skerry.runtimes.elastic.membership import Membership
from skerry.runtimes.peers import Peers

ROUNDS, STEPS = 16, 3
_SEEDED = threading.Lock()


def _session(workers, rounds=ROUNDS, capacities=None, **settings):
    with _SEEDED:  # members in threads share torch's random state
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        test = torch.randn(20, 6), torch.arange(20) % 3
    return Session(
        model, plan=discover(model, test[0]), num_rounds=rounds, loss_fn=nn.functional.cross_entropy, test=test,
        algorithm=ist(workers, local_steps=STEPS, capacities=capacities, optimizer_state="travel"),
        optimizer=lambda net: optim.SGD(net.parameters(), 0.1, momentum=0.5), **settings,
    )  # fmt: skip


def _train(worker, spoilt=False):
    rng = torch.Generator().manual_seed(100 * worker.number + worker.round)
    for _ in range(worker.num_steps):
        x, y = torch.randn(8, 6, generator=rng), torch.randint(3, (8,), generator=rng)
        loss = nn.functional.cross_entropy(worker.subnet(x), y)
        worker.step(loss * float("nan") if spoilt else loss)


def _member(port, deaths, newcomer, rank):
    """Take part; die in the middle of a round, or come when there is a place."""
    if newcomer:
        while not Path("../0/round-6").exists() and not Path("../2/round-6").exists():
            time.sleep(0.02)
        Path("../comes").touch()
    Path("ready").touch()
    while not newcomer and not all(Path(f"../{k}/ready").exists() for k in range(3)):
        time.sleep(0.02)
    began_with = []

    def training(runtime):
        began_with.append(runtime.num_processes)
        session = _session(runtime.num_processes, runtime=runtime)
        for round in session.rounds():
            Path(f"round-{round.number}").touch()
            if round.number > 6:
                while not Path("../comes").exists():
                    time.sleep(0.02)
                time.sleep(0.1)
            for worker in round.workers:
                _train(worker)
                if (round.number, runtime.rank) in deaths and not newcomer:
                    os.kill(os.getpid(), signal.SIGKILL)
        full = session.full()
        score = session.score(full)
        session.export(full, Path("../export"))
        return score

    with Elastic(f"127.0.0.1:{port}", "test", minimum=2, maximum=3, lease_s=3.0, grace_s=60.0) as elastic:
        score = elastic.run(training)
    told = {"loss": score.loss, "workers": began_with[0], "changes": [asdict(change) for change in elastic.changes]}
    Path("told.json").write_text(json.dumps(told))


def _reference(folder, workers, changes, deaths):
    """Train serially: a worker that died is refused in its round; then the next members go on."""
    begins, workers = [0, *(c["round"] for c in changes), ROUNDS], [workers, *(len(c["members"]) for c in changes)]
    for begin, end, num in zip(begins[:-1], begins[1:], workers, strict=True):
        session = _session(num, checkpoints=Checkpoints(folder, every_s=0, resume=begin > 0))
        for round in session.rounds():
            for worker in round.workers:
                _train(worker, spoilt=(round.number, worker.number) in deaths)
            if round.number == end - 1:
                session.stop()
    full = session.full()
    score = session.score(full)
    session.export(full, folder / "export")
    return score


@pytest.mark.filterwarnings("ignore")  # of short runs, and of a worker that is refused on purpose
def test_two_go_on_without_the_third_and_a_fourth_joins(tmp_path):
    store, deaths = serve_store(0), {(3, 1)}
    members = [partial(_member, store.port, deaths, newcomer) for newcomer in (False, False, False, True)]
    machines = start_on_machines(tmp_path, *members)
    for machine in machines:
        machine.join(120)
    codes = [machine.exitcode for machine in machines]
    for machine in machines:
        machine.kill()
    said = {path.parent.name: path.read_text() for path in tmp_path.glob("*/said")}
    assert sorted(codes) == [-signal.SIGKILL, 0, 0, 0], said
    told = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("?/told.json"))]
    first = max(told, key=lambda each: len(each["changes"]))  # took part from the start to the end
    *_, died, joined = first["changes"]  # before, one may have joined late
    assert (died["round"], len(died["members"]), len(died["lost"]), died["joined"]) == (4, 2, 1, [])
    assert died["units_lost"] == 24 // 3
    assert (len(joined["members"]), joined["lost"], joined["units_lost"]) == (3, [], 0)
    assert len({each["loss"] for each in told}) == 1
    score = _reference(tmp_path / "serial", first["workers"], first["changes"], deaths)
    ours, serial = (load_file(next((at / "export").glob("*.safetensors"))) for at in (tmp_path, tmp_path / "serial"))
    assert ours.keys() == serial.keys()
    for name in serial:
        torch.testing.assert_close(ours[name], serial[name], rtol=1e-6, atol=1e-7)
    assert told[0]["loss"] == pytest.approx(score.loss, rel=1e-5)


def _places(store, num, **settings):
    settings = {"minimum": 1, "lease_s": 2.0, "grace_s": 0.1, "patience_s": 60.0} | settings
    return [Elastic(f"127.0.0.1:{store.port}", "test", **settings) for _ in range(num)]


def _in_thread(pool, elastic, training):
    """Take part in a thread of this process."""

    def member():
        with elastic:
            return elastic.run(training)

    return pool.submit(member)


@pytest.mark.filterwarnings("ignore")
def test_who_joins_in_the_first_round_after_a_resume_goes_on_from_there(tmp_path):
    saved = _session(1, 5, checkpoints=Checkpoints(tmp_path, every_s=0))
    for round in saved.rounds():
        for worker in round.workers:
            _train(worker)
        if round.number == 2:
            saved.stop()
    store, began = serve_store(0), []
    first, second = _places(store, 2)

    def training(runtime):
        checkpoints = Checkpoints(tmp_path, every_s=0, resume=True)
        session = _session(runtime.num_processes, 5, runtime=runtime, checkpoints=checkpoints)
        began.append((runtime.num_processes, session.state.round))
        for round in session.rounds():
            if runtime.num_processes == 1:
                joins.append(_in_thread(pool, second, training))
                here = f"skerry-elastic/test/here/2/{second.uid}"
                while not store.check([here]) or second.uid not in first._leases.alive:
                    time.sleep(0.02)
            for worker in round.workers:
                _train(worker)
        return [record.round for record in session.history]

    joins = []
    with ThreadPoolExecutor(2) as pool:
        histories = [_in_thread(pool, first, training).result(60), joins[0].result(60)]
    assert began == [(1, 3), (2, 4), (2, 4)]
    assert histories == [[3, 4], [3, 4]]


@pytest.mark.filterwarnings("ignore")
def test_who_waits_for_a_place_does_not_train_a_run_again_that_has_ended():
    store = serve_store(0)

    def training(runtime):
        session = _session(runtime.num_processes, 2, runtime=runtime)
        for round in session.rounds():
            for worker in round.workers:
                _train(worker)
        return "trained"

    with ThreadPoolExecutor(2) as pool:
        members = [_in_thread(pool, place, training) for place in _places(store, 2, maximum=1)]
        ended = [member.exception(60) for member in members]
        assert sum(isinstance(why, PeerLost) and "has ended" in str(why) for why in ended) == 1
        assert ended.count(None) == 1
        (other,) = _places(store, 1, maximum=1, settings={"rounds": "3"})
        assert _in_thread(pool, other, training).result(60) == "trained"


def test_processes_that_differ_in_how_long_they_wait_do_not_train_together():
    store, settings = serve_store(0), {"minimum": 2, "patience_s": 4.0}

    def training(runtime):
        raise AssertionError("they train together")

    places = [*_places(store, 1, **settings), *_places(store, 1, late_s=2.0, **settings)]
    with ThreadPoolExecutor(2) as pool:
        members = [_in_thread(pool, place, training) for place in places]
        told = [str(member.exception(60)) for member in members]
    assert any("late_s is" in why for why in told)


@pytest.mark.slow  # test_group.py has the same for one group
@pytest.mark.filterwarnings("ignore")
def test_exchanges_that_are_given_up_leave_nothing_open(monkeypatch):
    """The second process gives up, and the first one waits in its group: the next ones must not have more files."""
    store, faults, opened, exchange = serve_store(0), {1, 2, 3}, [], Sharded.exchange

    def given_up(self, *args):
        if self._generation.rank == 1 and self._generation.round in faults:
            faults.remove(self._generation.round)
            raise PeerLost("given up")
        return exchange(self, *args)

    def training(runtime):
        session = _session(runtime.num_processes, 5, runtime=runtime)
        if runtime.rank == 0:
            opened.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
        for round in session.rounds():
            for worker in round.workers:
                _train(worker)
        return int(session.state.trained.sum())

    monkeypatch.setattr(Sharded, "exchange", given_up)
    with ThreadPoolExecutor(2) as pool:
        members = [_in_thread(pool, place, training) for place in _places(store, 2, minimum=2)]
        trained = [member.result(100) for member in members]
    assert not faults
    assert trained == [5 * 24] * 2
    files, threads = zip(*opened[1:], strict=True)
    assert max(files) <= files[0] + 2  # of one group there are ten
    assert max(threads) <= threads[0] + 1


@pytest.mark.filterwarnings("ignore")
def test_who_is_faster_gets_more_units(monkeypatch):
    """Speeds are made up: a step takes a time in proportion to the capacity."""
    store, work = serve_store(0), {}
    speed = property(lambda own: work[own._leases.uid] / own.capacity, lambda own, value: None)
    monkeypatch.setattr(Membership, "speed", speed, raising=False)
    places = _places(store, 2, minimum=2, by_speed=True)
    work.update({place.uid: 1.0 + 3 * k for k, place in enumerate(places)})

    def training(runtime):
        session = _session(runtime.num_processes, 12, runtime.capacities, runtime=runtime)
        for round in session.rounds():
            for worker in round.workers:
                _train(worker)
        return runtime.capacities, session.state.trained.tolist(), int(session.setup.store.assignment.held[0].sum())

    with ThreadPoolExecutor(2) as pool:
        members = [_in_thread(pool, place, training) for place in places]
        (capacities, trained, held), other = (member.result(60) for member in members)
    assert (capacities, trained, held) == other
    assert max(capacities) / min(capacities) > 2.5
    assert held == pytest.approx(24 * capacities[0] / 2, abs=1)
    assert set(trained) == {12}  # nobody has lost a round
    assert places[0].changes


def test_heartbeats_go_on_after_any_error_of_the_system(monkeypatch):
    beats, said = list[str](), list[str]()
    elastic = Elastic("127.0.0.1:1", say=said.append)
    waits = iter([OSError("no more files"), RuntimeError("no store"), MemoryError(), None])

    def wait_for_beat():
        if error := next(waits):
            raise error
        elastic._ended.set()
        return []

    monkeypatch.setattr(elastic, "_checked", lambda: "store")
    monkeypatch.setattr(elastic, "_wait_for_beat", wait_for_beat)
    monkeypatch.setattr(elastic._leases, "beat", lambda store, ended: beats.append(store))
    elastic._leases.store = "the last one"
    elastic._beat()
    assert beats == ["store"]
    assert elastic._leases.store == ""
    assert said == ["a heartbeat failed: MemoryError: ; trying again"]


def test_a_text_of_a_member_that_was_changed_on_the_way_is_a_lost_peer(monkeypatch):
    generation, changed = object.__new__(Generation), {"text": "x"}
    monkeypatch.setattr(generation, "where", lambda: "rank 0", raising=False)
    monkeypatch.setattr(Peers, "gather", lambda own, text: [text, text.replace("x", changed["text"])])
    assert generation.gather("xyz") == ["xyz", "xyz"]
    changed["text"] = "y"
    with pytest.raises(PeerLost, match=r"rank 0: .* was changed on the way"):
        generation.gather("xyz")


def test_a_speed_is_the_median_of_five_rounds():
    generation = object.__new__(Generation)
    generation.membership, generation._speeds = Mock(speed=0.0), deque(maxlen=5)
    known = []
    for speed in (1.0, 9.0, 2.0, 8.0, 3.0, 9.0):
        generation.timed(speed)
        known.append(generation.membership.speed)
    assert known == [0.0] * 4 + [3.0, 8.0]


def test_clients_are_refused_before_a_run_begins():
    assert not why_not_elastic(ist(2))
    assert "its clients train in one process" in why_not_elastic(replace(ist(2), clients=Clients.spread(4)))


def _begins_with_a_loss(port, rank):
    """Take part in two rounds; the first member dies when all have agreed to begin, and the other goes on alone."""

    def training(runtime):
        session = _session(runtime.num_processes, 2, runtime=runtime)
        elastic._membership._minimum = 1
        if runtime.num_processes == 2 and runtime.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        for round in session.rounds():
            for worker in round.workers:
                _train(worker)
        return [record.round for record in session.history]

    with Elastic(f"127.0.0.1:{port}", "test", minimum=2, lease_s=2.0, grace_s=0.1) as elastic:
        Path("told.json").write_text(json.dumps(elastic.run(training)))


@pytest.mark.filterwarnings("ignore")
def test_a_run_whose_first_member_is_lost_before_round_0_records_no_round_before_it(tmp_path):
    store = serve_store(0)
    machines = start_on_machines(tmp_path, *[partial(_begins_with_a_loss, store.port)] * 2)
    for machine in machines:
        machine.join(60)
    assert sorted(machine.exitcode for machine in machines) == [-signal.SIGKILL, 0]
    assert [json.loads(path.read_text()) for path in tmp_path.glob("?/told.json")] == [[0, 1]]


def _store(port, rank):
    store = serve_store(port)
    Path("up").touch()
    signal.pause()
    del store


def _endures(port, rank):
    """Train 60 rounds, whatever happens."""

    def training(runtime):
        session = _session(runtime.num_processes, 60, runtime=runtime)
        for round in session.rounds():
            time.sleep(0.05)
            for worker in round.workers:
                _train(worker)
            with Path("rounds").open("a") as log:
                log.write(f"{round.number}\n")
        return session.score(session.full()), session.state.trained.tolist()

    with Elastic(f"127.0.0.1:{port}", "test", minimum=2, maximum=4, lease_s=3.0, grace_s=5.0) as elastic:
        score, trained = elastic.run(training)
    told = {"loss": score.loss, "trained": trained, "changes": [asdict(change) for change in elastic.changes]}
    Path("told.json").write_text(json.dumps(told))


def _rounds(folder):
    return [int(line) for log in folder.glob("*/0/rounds") for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_faults_at_any_time_lose_only_the_victims_rounds(tmp_path, seed):
    rng, members, faults = random.Random(seed), {}, []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(name, work):
        return start_on_machines(tmp_path / name, partial(work, port))[0]

    store = start("store-0", _store)
    for k in range(3):
        members[k] = start(f"member-{k}", _endures)
    at, since = 0, time.monotonic()
    while (now := max(_rounds(tmp_path), default=0)) < 50:
        time.sleep(rng.uniform(0.2, 1.0))
        if now < at + 3:  # the run goes on after each fault before the next
            assert time.monotonic() - since < 100, faults
            continue
        fault = rng.choice(["kill", "stop", "join", "store"])
        alive = [k for k, member in members.items() if member.is_alive()]
        victim = rng.choice(alive)
        at, since = now, time.monotonic()
        faults.append((now, fault, victim))
        if fault == "kill" and len(alive) > 2:
            members[victim].kill()
        elif fault == "stop" and len(alive) > 2:
            os.kill(members[victim].pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0.5, 6.0))
            os.kill(members[victim].pid, signal.SIGCONT)
        elif fault == "join" and len(alive) < 4:
            members[len(members)] = start(f"member-{len(members)}", _endures)
        elif fault == "store":
            store.kill()
            store.join()
            store = start(f"store-{len(faults)}", _store)
    for member in members.values():
        member.join(60)
    codes = [member.exitcode for member in members.values()]
    for process in (*members.values(), store):
        process.kill()
    print(faults, codes)
    told = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("member-*/0/told.json"))]
    assert len(told) >= 2, codes
    assert set(codes) <= {0, -signal.SIGKILL}
    assert len({each["loss"] for each in told}) == 1
    changes = {json.dumps([c["round"], c["members"], c["units_lost"]]) for each in told for c in each["changes"]}
    lost = sum(json.loads(change)[2] for change in changes)
    assert [60 * 24 - sum(each["trained"]) for each in told] == [lost] * len(told)


_ENDS = """
import skerry, torch
from torch import nn

def training(runtime):
    return skerry.train(
        model, nn.functional.cross_entropy, skerry.Shards(x, y, [torch.arange(40)], batch_size=20, seed=0), plan=plan,
        algorithm=skerry.ist(1, local_steps=2), optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1),
        num_rounds=2, runtime=runtime,
    )

x, y = torch.randn(40, 8), torch.arange(40) % 3
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
plan, store = skerry.discover(model, x), skerry.runtimes.serve_store(0)
elastic = skerry.Elastic(f"127.0.0.1:{store.port}", minimum=1, grace_s=0.1)
elastic._wait_for_beat = lambda: []  # the heartbeats are always in a call of torch
elastic.run(training)
raise SystemExit(3)
"""


def test_a_script_that_ends_without_leaving_ends_cleanly():
    """A thread that is in a call of torch when the interpreter ends makes the process abort."""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", _ENDS], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (3, "")
