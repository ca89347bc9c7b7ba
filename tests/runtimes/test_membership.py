"""The protocol of an elastic run on a simulated clock: kills, stops, slow members, a lost store, newcomers.

Each schedule has a seed, which replays it. The ledger of a schedule has every version that was committed, and from
which one it was made. It is checked that every unit has one owner and a second holder, that nobody loses more than the
rounds of those who died or were away, that versions only go on, and that all who are alive train together in the end.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from skerry.runtimes.elastic.checked_store import CheckedStore
from skerry.runtimes.elastic.leases import Leases
from skerry.runtimes.elastic.membership import Candidate, Decision, Membership, TooFew, buddy_of

UNITS = range(12)
LEASE_S = 1.0
QUIET_S = 6.0  # in which everybody alive must train together after the last fault


class Store:
    """A store in memory, which may be unreachable, and come back empty; texts on the way may be changed."""

    def __init__(self, on_the_way: Callable[[bytes], bytes] = bytes) -> None:
        self.up, self.values, self.life = True, dict[str, bytes](), 0
        self.on_the_way = on_the_way

    def connect(self) -> "Connection":
        if not self.up:
            raise RuntimeError("refused")
        return Connection(self, self.life)

    def lose(self) -> None:
        self.up, self.life = False, self.life + 1
        self.values.clear()


@dataclass
class Connection:
    store: Store
    life: int

    def _values(self) -> dict[str, bytes]:
        if not self.store.up or self.life != self.store.life:
            raise RuntimeError("broken")
        return self.store.values

    def add(self, key: str, amount: int) -> int:
        values = self._values()
        values[key] = str(int(values.get(key, b"0")) + amount).encode()
        return int(values[key])

    def set(self, key: str, value: str) -> None:
        self._values()[key] = self.store.on_the_way(value.encode())

    def get(self, key: str) -> bytes:
        return self.store.on_the_way(self._values()[key])

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values() for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def compare_set(self, key: str, expected: str | bytes, desired: str) -> bytes:
        values = self._values()
        if values.get(key, b"") == (expected if isinstance(expected, bytes) else expected.encode()):
            values[key] = self.store.on_the_way(desired.encode())
        return values.get(key, b"")


@dataclass
class Piece:
    """What a member holds of a version: its units with the rounds they were trained, and its buddy's as they began."""

    workers: tuple[str, ...]
    own: dict[int, int]
    copy: dict[int, int]


@dataclass
class Version:
    base: str
    values: dict[int, int]
    owners: dict[int, str]
    restored: set[int]  # units that came from a copy
    pieces: dict[str, Piece]
    members: tuple[str, ...]


@dataclass
class Member:
    uid: str
    membership: Membership[Piece]
    leases: Leases
    sent: dict[str, Piece] = field(default_factory=dict)  # by decision: what it hands over
    stopped_until: float = 0.0
    speed: float = 1.0
    times: int = 1  # how much longer its local steps take
    dead: bool = False
    trained: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # others whose lines have closed


class Simulation:
    def __init__(
        self,
        seed: int,
        *,
        minimum: int = 2,
        store_faults: bool = True,
        num_faults: int = 4,
        spaced: bool = True,
        late_s: float | None = None,
        patience_s: float = 1e6,
        changed: float = 0.0,
    ) -> None:
        self.late_s, self.patience_s, self.changed = late_s, patience_s, changed
        self.rng, self.now, self.store = random.Random(seed), 0.0, Store(self.on_the_way)
        self.members, self.versions = dict[str, Member](), dict[str, Version]()
        self.minimum, self.spaced = minimum, spaced
        self.actors: list[tuple[float, int, Member, Iterator[None], float]] = []
        self.count = itertools.count()
        for _ in range(self.rng.randint(minimum, 4)):
            self.join()
        self.faults = ["kill", "stop", "slow", "join", "missed", *(["store"] if store_faults else [])]
        self.num_faults = num_faults
        self.deaths, self.quiet_from = 0, 1e9 if num_faults else 0.0

    def on_the_way(self, value: bytes) -> bytes:
        """Change a bit of some texts; counters, which are numbers, are left alone."""
        if not self.changed or value.isdigit() or self.rng.random() >= self.changed or self.now > self.quiet_from:
            return value
        at = self.rng.randrange(len(value))
        return value[:at] + bytes([value[at] ^ 1 << self.rng.randrange(8)]) + value[at + 1 :]

    def connect(self) -> CheckedStore:
        return CheckedStore(self.store.connect())

    def join(self, rate: str = "0.1") -> Member:
        uid = f"m{len(self.members)}"
        leases = Leases(uid, LEASE_S, lambda: self.now)
        membership = Membership[Piece](
            self.connect,
            leases,
            lambda: self.now,
            minimum=self.minimum,
            maximum=5,
            grace_s=0.5,
            patience_s=self.patience_s,
            late_s=self.late_s,
            settings={"rate": rate},
        )
        member = Member(uid, membership, leases)
        self.members[uid] = member
        self.then(self.now, member, self.heart(member), LEASE_S / 3)
        self.then(self.now + 0.01, member, self.life(member), 0.1)
        return member

    def then(self, at: float, member: Member, steps: Iterator[None], pace: float) -> None:
        heapq.heappush(self.actors, (at, next(self.count), member, steps, pace))

    def heart(self, member: Member) -> Iterator[None]:
        connection = None
        while True:
            try:
                connection = connection or self.connect()
                ended, member.ended = member.ended, []
                member.leases.beat(connection, ended)
            except RuntimeError:
                connection = None
            yield

    def life(self, member: Member) -> Iterator[None]:
        membership = member.membership
        while True:
            decision = yield from membership.decide()
            assert member.uid in decision.members
            assert decision.is_whole
            assert not decision.ending
            piece = yield from self.exchange(member, decision)
            if not (yield from membership.commit(decision, piece)):
                continue
            member.trained.append(decision.name)
            for _ in range(member.times * self.rng.randint(1, 5)):
                yield
            held = membership.held[decision.name]
            membership.held[decision.name] = Piece(held.workers, {u: v + 1 for u, v in held.own.items()}, held.copy)

    def exchange(self, member: Member, decision: Decision) -> Generator[None, None, Piece | None]:
        """Send, wait for the others, and return what is held then; None if somebody is lost meanwhile."""
        if member.membership.held:
            member.sent[decision.name] = member.membership.held[decision.base]
        else:
            member.sent[decision.name] = Piece((), {}, {})
        yield
        while not all(decision.name in self.members[uid].sent for uid in decision.members):
            if member.membership.broken:
                return None
            yield
        values, restored = dict.fromkeys(UNITS, 0), set[int]()
        for source in decision.sources:
            sent = self.members[decision.members[source.rank]].sent[decision.name]
            values |= sent.copy if source.is_copy else sent.own
            restored |= sent.copy.keys() if source.is_copy else set()
        if decision.base:
            assert sum(len(p.own) for p in self.versions[decision.base].pieces.values()) == len(UNITS)
        dealt = random.Random(decision.name)
        owners = {unit: dealt.choice(decision.members) for unit in UNITS}
        owned = {uid: {u: values[u] for u in UNITS if owners[u] == uid} for uid in decision.members}
        workers = decision.members
        pieces = {uid: Piece(workers, owned[uid], owned[workers[rank - 1]]) for rank, uid in enumerate(workers)}
        new = Version(decision.base, values, owners, restored, pieces, workers)
        known = self.versions.setdefault(decision.name, new)
        assert known == new, "members disagree about what was exchanged"
        return pieces[member.uid]

    def run(self) -> None:
        times = sorted(self.rng.uniform(0.3, 5.0) for _ in range(self.num_faults))
        back = 0.0
        while self.now < self.quiet_from + QUIET_S:
            self.now, _, member, steps, pace = heapq.heappop(self.actors)
            while times and times[0] <= self.now:
                back = self.fault(back)
                times.pop(0)
                if not times:
                    self.quiet_from = max(self.now, back, *(m.stopped_until for m in self.members.values()))
            if self.now > self.quiet_from:
                for other in self.members.values():
                    other.speed = 1.0
            if not self.store.up and self.now > back:
                self.store.up = True
            if member.dead:
                continue
            if self.now < member.stopped_until:
                self.then(member.stopped_until + self.rng.uniform(0, 0.05), member, steps, pace)
                continue
            next(steps)
            self.then(self.now + pace * member.speed * self.rng.uniform(0.2, 1.0), member, steps, pace)

    def fault(self, back: float) -> float:
        kind = self.rng.choice(self.faults)
        alive = [m for m in self.members.values() if not m.dead]
        chosen = self.rng.choice(alive)
        if kind == "kill" and len(alive) > self.minimum and (not self.spaced or self.is_copied()):
            chosen.dead = True
            self.deaths += 1
            if self.rng.random() < 0.5:
                self.miss(chosen)
        elif kind == "stop":
            chosen.stopped_until = self.now + self.rng.uniform(0.2, 2.0)
        elif kind == "slow":
            chosen.speed = 3.0
        elif kind == "missed":  # its lines are cut, but it is alive
            self.miss(chosen)
        elif kind == "store" and self.store.up:
            self.store.lose()
            return self.now + self.rng.uniform(0.1, 2.0)
        elif kind == "join" and len(alive) < 5:
            self.join()
        return back

    def miss(self, chosen: Member) -> None:
        """Let all others think that a member has ended."""
        for member in self.members.values():
            if member is not chosen:
                member.ended.append(chosen.uid)

    def is_copied(self) -> bool:
        """Whether nobody has died since the last version."""
        committed = self.committed()
        latest = committed[max(committed)].members if committed else ()
        return len(latest) > 1 and not any(self.members[uid].dead for uid in latest)

    def is_whole(self) -> bool:
        """Whether the living still hold the last version; else two neighbours died in one round."""
        alive = {m.uid: m.membership for m in self.members.values() if not m.dead}
        latest = max(m.epoch for m in alive.values())
        base = max(m.base for m in alive.values() if m.epoch == latest)
        if not base:
            return True
        members = self.versions[base].members
        pairs = [(uid, members[buddy_of(k, len(members))]) for k, uid in enumerate(members)]
        return all(any(uid in alive for uid in pair) for pair in pairs)

    def committed(self) -> dict[str, Version]:
        names = {name for member in self.members.values() for name in member.trained}
        return {name: self.versions[name] for name in sorted(names)}


def check(simulation: Simulation) -> dict[str, int]:
    """Check the invariants of a schedule that has run; return what it saw."""
    committed = simulation.committed()
    restored = 0
    for name, version in committed.items():
        assert version.base < name, "versions only go on"
        own = [unit for piece in version.pieces.values() for unit in piece.own]
        assert sorted(own) == list(UNITS), "one owner each"
        if len(version.members) > 1:
            second = [unit for piece in version.pieces.values() for unit in piece.copy]
            assert sorted(second) == list(UNITS), "a second holder each"
        if version.base:
            before = committed[version.base]
            for unit in UNITS:
                assert version.values[unit] >= before.values[unit], "no unit goes back behind the round's start"
                if version.values[unit] == before.values[unit]:
                    owner = simulation.members[before.owners[unit]]
                    kept = owner.uid in version.members and unit not in version.restored
                    assert not kept or version.base not in owner.trained, "whoever is there keeps its round"
        restored += len(version.restored)
    for member in simulation.members.values():
        assert member.trained == sorted(member.trained), "versions of a member only go on"
    alive = {m.uid for m in simulation.members.values() if not m.dead}
    together = [name for name, version in committed.items() if set(version.members) == alive]
    last = together[-2:-1] or ["none"]  # of the last one, some do not know yet
    late = [m.uid for m in simulation.members.values() if not m.dead and m.trained[-1:] < last]
    lost = not simulation.spaced and not simulation.is_whole()
    assert lost or not late, f"{late} hang behind {last}; versions {list(committed)[-3:]}"
    return {"commits": len(committed), "restored": restored, "deaths": simulation.deaths, "lost": int(lost)}


def run(seed: int, **settings: Any) -> dict[str, int]:
    """Run one schedule and check it; a failure names the seed that replays it."""
    simulation = Simulation(seed, **settings)
    try:
        simulation.run()
        return check(simulation)
    except AssertionError as error:
        error.add_note(f"replay: run({seed}, {settings})")
        raise


SETTINGS = {
    "one fault": {"store_faults": False, "num_faults": 1},
    "members": {"store_faults": False},
    "the store, too": {"num_faults": 5},
    "neighbours": {"spaced": False},
    "one may go on": {"minimum": 1},
    "three at least": {"minimum": 3},
    "bytes are changed": {"changed": 0.02},
    "nobody waits": {"late_s": 0.2},
    "nobody waits, three at least": {"late_s": 0.2, "minimum": 3},
}


def total(settings: dict[str, Any], seeds: Iterable[int]) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        seen.update(run(seed, **settings))
    return seen


@pytest.mark.parametrize("name", SETTINGS)
def test_schedules_of_faults(name):
    seen = total(SETTINGS[name], range(12))
    assert seen["commits"] > 50
    assert name == "neighbours" or not seen["lost"]
    assert seen["restored"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_thousands_of_schedules(name):
    seen = total(SETTINGS[name], range(1000, 2000))
    print(name, dict(seen))
    assert name == "neighbours" or not seen["lost"]


def test_a_run_without_faults_loses_nothing():
    seen = total({"num_faults": 0}, range(5))
    assert not seen["restored"]
    assert seen["commits"] > 20


def _run_slowly(simulation, num, slow):
    """Run with ``num`` members of whom some take twenty times as long; return who counted as dead."""
    dead = set()
    while len(simulation.members) < num:
        simulation.join()
    for uid in slow:
        simulation.members[uid].times = 20
    while simulation.now < 20.0:
        simulation.now, _, member, steps, pace = heapq.heappop(simulation.actors)
        next(steps)
        simulation.then(simulation.now + pace * simulation.rng.uniform(0.2, 1.0), member, steps, pace)
        dead |= member.leases.dead
    return dead


def test_who_is_late_is_left_out_of_a_round_and_comes_in_again():
    """One member takes twenty times as long: the others go on without it, and nobody counts as dead."""
    simulation = Simulation(3, num_faults=0, late_s=0.3)
    dead = _run_slowly(simulation, 4, ["m0"])
    present = ["m0" in version.members for version in simulation.committed().values()]
    assert not dead
    assert {(True, False), (False, False), (False, True)} <= set(itertools.pairwise(present))
    check(simulation)


@pytest.mark.parametrize("num", [4, 5])
def test_a_run_that_waits_for_more_begins_at_once_with_the_maximum(num):
    simulation = Simulation(0, num_faults=0)
    while len(simulation.members) < num:
        simulation.join()
    for member in simulation.members.values():
        member.membership._grace_s = 1e6
    simulation.run()
    assert bool(simulation.committed()) == (num == 5)


@pytest.mark.parametrize(("num", "minimum", "slow"), [(5, 2, ["m2", "m3"]), (4, 4, ["m1"])])
def test_who_is_late_is_waited_for_if_the_run_cannot_go_on_without(num, minimum, slow):
    """However long it takes: two neighbours hold the only copies of a piece, or there would be too few."""
    simulation, waiting = Simulation(3, minimum=2, num_faults=0, late_s=0.3, patience_s=1.0), []
    while len(simulation.members) < num:
        simulation.join()
    for member in simulation.members.values():
        member.membership._minimum, member.membership._waiting = minimum, waiting.append
    assert not _run_slowly(simulation, num, slow)
    assert not waiting
    assert len(simulation.committed()) > 3
    check(simulation)


def _nobody_is_missed(self):
    return ""


def _commit_alone(self, decision, piece):
    if piece is not None:
        self.base, self.held = decision.name, {decision.name: piece}
    yield
    return piece is not None


@pytest.mark.parametrize(
    ("of", "name", "broken"),
    [
        (Membership, "broken", property(_nobody_is_missed)),
        (Membership, "commit", _commit_alone),
        (Decision, "is_whole", True),
    ],
)
def test_a_protocol_without_a_rule_is_found(monkeypatch, of, name, broken):
    monkeypatch.setattr(of, name, broken)
    with pytest.raises((AssertionError, AttributeError)):
        total({"num_faults": 5, "spaced": False}, range(20))


def test_a_store_that_is_lost_between_two_heartbeats_is_missed():
    store, leases, names = Store(), Leases("m0", LEASE_S, lambda: 0.0), set()
    for lost in range(3):
        for _ in range(2):
            leases.beat(store.connect())
            names.add(leases.store)
            assert len(names) == lost + 1
        store.lose()
        store.up = True


def test_a_member_whose_store_is_lost_before_it_takes_a_decision_that_it_is_in_turns_to_the_next_store():
    stores, now = [Store()], [0.0]
    leases = Leases("a", 10.0, lambda: now[0])
    member = Membership[Piece](lambda: stores[0].connect(), leases, lambda: now[0], patience_s=60.0)
    decision = Decision(1, "b", {"a": Candidate(), "b": Candidate()})
    stores[0].values |= {"epoch": b"1", "decision/1": decision.to_json().encode()}
    steps = member.decide()
    next(steps)
    stores[0].lose()
    stores[0] = Store()
    with suppress(StopIteration):  # it may decide there
        while now[0] < 5.0:
            now[0] += 0.5
            leases.beat(stores[0].connect())
            next(steps)
    assert any(key.startswith("here/") for key in stores[0].values)


def test_who_has_ended_is_dead_at_once_unless_it_beats_again():
    store, now = Store(), [0.0]
    here, other = (Leases(uid, LEASE_S, lambda: now[0]) for uid in ("m0", "m1"))
    for leases in (here, other, here):
        leases.beat(store.connect())
    assert here.alive == {"m0", "m1"}
    here.beat(store.connect(), ["m1"])
    here.beat(store.connect())
    assert here.dead == {"m1"}
    other.beat(store.connect())
    here.beat(store.connect())
    assert here.alive == {"m0", "m1"}


@pytest.mark.parametrize("begun", [False, True])
def test_who_has_other_settings_is_refused_and_disturbs_nobody(begun):
    simulation = Simulation(0, num_faults=0)
    if begun:
        simulation.run()
        simulation.quiet_from = simulation.now
    stranger = simulation.join(rate="0.2")
    with pytest.raises(ValueError, match=r"rate is 0\.2 here and 0\.1 in m0"):
        simulation.run()
    stranger.dead = True
    simulation.run()
    assert check(simulation)["commits"] > 4
    assert not any(stranger.uid in version.members for version in simulation.versions.values())


def test_a_run_that_all_have_left_begins_anew():
    simulation = Simulation(0, num_faults=0)
    simulation.run()
    for member in simulation.members.values():
        member.leases.leave(simulation.connect())
        member.dead = True
    simulation.join(rate="0.2")
    simulation.join(rate="0.2")
    before, simulation.quiet_from = len(simulation.committed()), simulation.now
    simulation.run()
    assert check(simulation)["commits"] > before + 2
    assert [version.base for version in simulation.committed().values()].count("") == 2


def test_a_run_whose_members_are_all_killed_begins_anew_after_the_patience():
    simulation = Simulation(0, num_faults=0)
    simulation.run()
    for member in simulation.members.values():
        member.dead = True
    for member in [simulation.join(), simulation.join()]:
        member.membership._patience_s = 3.0
    before, simulation.quiet_from = len(simulation.committed()), simulation.now - QUIET_S + 2.5
    simulation.run()
    assert len(simulation.committed()) == before
    simulation.quiet_from = simulation.now
    simulation.run()
    assert check(simulation)["commits"] > before + 2
    assert [version.base for version in simulation.committed().values()].count("") == 2


def test_too_few_decide_to_end_if_they_hold_everything():
    simulation, ended, waiting = Simulation(0, num_faults=0), [], []
    simulation.run()

    def life(member):
        member.membership._minimum, member.membership._patience_s = 9, 1.0
        member.membership._waiting = waiting.append
        decision = yield from member.membership.decide()
        ended.append(decision.ending)
        while True:
            yield

    simulation.actors = [actor for actor in simulation.actors if actor[4] != 0.1]  # hearts go on
    for member in simulation.members.values():
        simulation.then(simulation.now, member, life(member), 0.1)
    simulation.quiet_from = simulation.now
    simulation.run()
    num = len(simulation.members)
    assert ended == [f"{num} processes, expected at least 9"] * num
    assert waiting == [num] * num  # told once in each


def test_a_run_that_cannot_go_on_says_why():
    simulation = Simulation(0, minimum=2, num_faults=0)
    for member in simulation.members.values():
        member.membership._patience_s, member.membership._minimum = 3.0, 9
    with pytest.raises(TooFew, match="processes, expected at least 9"):
        simulation.run()


def test_who_has_no_heartbeats_any_more_does_not_wait_without_end():
    simulation = Simulation(0, num_faults=0, patience_s=2.0)
    simulation.run()
    simulation.actors = [actor for actor in simulation.actors if actor[4] == 0.1]  # hearts stand still
    heapq.heapify(simulation.actors)
    simulation.store.lose()
    simulation.store.up, simulation.quiet_from = True, simulation.now
    with pytest.raises(TooFew, match="heartbeats of this process do not reach the store"):
        simulation.run()
