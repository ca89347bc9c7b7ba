"""Membership: who is in a run, one agreed decision per epoch, and an exchange that happens for all or for nobody.

A run goes through epochs. In each of them the members agree on a decision (``decide``): who takes part. They exchange
pieces, and vote (``commit``): a new *version* of the run exists if all have voted for it, else everything stays as it
was. The store has the words of the agreement only. It may be lost and come back empty: members keep what they have.

The rules:

- Only members of decision E - 1 write decision E, by one compare-and-set. They wait for each other, but not for those
  whose lease has ended. Newcomers that are there come in, up to the maximum.
- If more than half of them have come, and others not ``late_s`` seconds later, those are left out, and come in later;
  but not if the run cannot go on without them, since they alone hold a piece or there would be too few.
- A decision that does not bring all pieces together, or has fewer members than the minimum, is not written. After
  ``patience_s`` seconds too few with all pieces decide to end.
- A version gets its name from its decision, which one member wrote. Who has voted keeps the old pieces *and* the new
  ones until it knows how the vote ended, since the store may be lost at that moment. In the next decision it learns
  from those who know. If nobody there does, the old version goes on. Who was in the latest decision is believed.
- A member without pieces of the version that goes on, since it was away, is a newcomer.
- A run whose members have all left, or were dead for ``patience_s``, begins anew with those who come. Who has other
  settings is refused. A run that has ended does not begin again, except with other settings.

The functions that wait are generators: they yield where the caller may sleep. So a simulation can run thousands of
schedules (``tests/runtimes/test_membership.py``), and processes wait for real.
"""

import contextlib
import json
import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from skerry.randomness import seed_of
from skerry.runtimes.elastic.leases import KeyStore, Leases, name_of
from skerry.runtimes.peers import differences

_NO_HEARTBEATS = "the heartbeats of this process do not reach the store"


class TooFew(Exception):
    """There are too few members to go on, or the store does not answer."""


class HasWorkers(Protocol):
    """What a member holds of a version."""

    @property
    def workers(self) -> Sequence[str]:
        """The members that the version was dealt to, in the order of workers."""
        ...


Held = TypeVar("Held", bound=HasWorkers)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a member says of itself before a decision.

    Attributes:
        decided: the epoch of the last decision that it was in, 0 for none.
        base: the version that the run was at then, or a later one that it knows of; empty for none.
        held: the versions of which it has pieces, with their workers.
        finished: whether it has nothing more to do.
        group: in which it can exchange; empty if it needs a new one.
        rank: in the last decision; its workers keep their numbers as far as they can.
        settings: a digest of what must be the same in all members.
        address: where its process listens (``lines.py``).
        speed: local steps per second in its latest rounds, 0 if it has none.
        capacity: of its subnet, relative to the others'.
    """

    decided: int = 0
    base: str = ""
    held: Mapping[str, Sequence[str]] = field(default_factory=dict)
    finished: bool = False
    group: str = ""
    rank: int = 2**31
    settings: str = ""
    address: str = ""
    speed: float = 0.0
    capacity: float = 1.0


@dataclass(frozen=True)
class Source:
    """Who has the piece of a worker of the version that goes on.

    Attributes:
        rank: of the member that has it.
        is_copy: whether it is the copy that the worker's buddy keeps, as the round began.
    """

    rank: int
    is_copy: bool


@dataclass(frozen=True)
class Decision:
    """Who takes part in an epoch.

    Attributes:
        epoch: its number.
        writer: the member that wrote it.
        candidates: what each member said, in the order of ranks.
        ending: why they only keep what there is and end; empty if they go on.
    """

    epoch: int
    writer: str
    candidates: Mapping[str, Candidate]
    ending: str = ""

    @cached_property
    def name(self) -> str:
        """The name of the version that a commit makes; later epochs have greater ones."""
        return f"{self.epoch:09d}.{self.writer}"

    @property
    def members(self) -> tuple[str, ...]:
        """Who takes part, by rank."""
        return tuple(self.candidates)

    @cached_property
    def base(self) -> str:
        """The version that goes on, empty at the start: what those who were in the latest decision know."""
        latest = max((c.decided for c in self.candidates.values()), default=0)
        return max((c.base for c in self.candidates.values() if c.decided == latest), default="")

    @cached_property
    def workers(self) -> tuple[str, ...]:
        """The members that the version that goes on was dealt to; empty if there is none, or nobody holds it."""
        return next((tuple(c.held[self.base]) for c in self.candidates.values() if self.base in c.held), ())

    @cached_property
    def sources(self) -> tuple[Source | None, ...]:
        """For each worker of the version that goes on, who has its piece; None if it is lost."""
        ranks = {uid: r for r, (uid, c) in enumerate(self.candidates.items()) if self.base in c.held}
        found: list[Source | None] = []
        for worker, uid in enumerate(self.workers):
            buddy = self.workers[buddy_of(worker, len(self.workers))]
            own, copy = ranks.get(uid), ranks.get(buddy)
            found.append(Source(own, False) if own is not None else Source(copy, True) if copy is not None else None)
        return tuple(found)

    @property
    def is_whole(self) -> bool:
        """Whether all pieces of the version that goes on are there."""
        return not self.base or (bool(self.workers) and None not in self.sources)

    @property
    def is_finished(self) -> bool:
        """Whether all members that hold a piece have nothing more to do."""
        holding = [c for c in self.candidates.values() if self.base in c.held]
        return bool(holding) and all(c.finished for c in holding)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps([self.epoch, self.writer, {uid: vars(c) for uid, c in self.candidates.items()}, self.ending])

    @classmethod
    def from_json(cls, text: bytes) -> "Decision":
        """Return what ``to_json`` wrote."""
        epoch, writer, candidates, ending = json.loads(text)
        return cls(epoch, writer, {uid: Candidate(**c) for uid, c in candidates.items()}, ending)


def buddy_of(worker: int, num_workers: int) -> int:
    """Return the worker that keeps a copy of a worker's piece."""
    return (worker + 1) % num_workers


class Membership(Generic[Held]):
    """One member's part of the protocol.

    Args:
        connect: opens a connection to the store; RuntimeError if it cannot be reached.
        leases: kept up by heartbeats elsewhere, over a connection of their own.
        clock: in seconds.
        minimum: members without which nothing goes on.
        maximum: members at most.
        grace_s: seconds for which the first decision waits for more members, up to the maximum.
        patience_s: seconds that a decision may take.
        late_s: seconds that more than half of the members wait for the others; None: as long as these are alive.
        settings: what must be the same in all members.
        waiting: called once per decision, with how many members are there, if they are fewer than the minimum.
        address: where this process listens.

    Attributes:
        held: what this member has of the version that goes on, by its name; with that of a vote whose end is unknown.
        base: the version that the run is at, as far as this member knows.
        epoch: of the last decision that this member was in.
        speed, capacity: of this member, which it says before the next decision.
    """

    def __init__(
        self,
        connect: Callable[[], KeyStore],
        leases: Leases,
        clock: Callable[[], float],
        *,
        minimum: int = 1,
        maximum: int = 2**31,
        grace_s: float = 2.0,
        patience_s: float = 60.0,
        late_s: float | None = None,
        settings: Mapping[str, str] | None = None,
        waiting: Callable[[int], None] = lambda num: None,
        address: Callable[[], str] = lambda: "",
    ) -> None:
        self._address = address
        self._waiting, self._waits = waiting, False
        self._settings = json.dumps(settings or {}, sort_keys=True)
        self._connect, self._leases, self._clock = connect, leases, clock
        self._minimum, self._maximum, self._grace_s, self._patience_s = minimum, maximum, grace_s, patience_s
        self._late_s, self.speed, self.capacity = late_s, 0.0, 1.0
        self.held: dict[str, Held] = {}
        self.base, self.epoch = "", 0
        self._members: tuple[str, ...] = ()
        self._store: KeyStore | None = None
        self._store_name = ""

    @property
    def broken(self) -> str:
        """Why the exchange of the last decision cannot end, empty if it can: somebody is dead or has given up.

        Or the store is lost: then others may never have read the decision.
        """
        dead = sorted(self._leases.dead & set(self._members))
        store_lost = self._leases.store != self._store_name
        if dead:
            return f"lost {', '.join(dead)}"
        return "lost the store" if store_lost else "another member has given up" if self._leases.given_up else ""

    @property
    def group(self) -> str:
        """The group that this member exchanges in; empty for none."""
        return self._leases.group

    def join_group(self, decision: Decision) -> None:
        """Note that this member makes a group with the members of a decision."""
        self._leases.group, self._leases.given_up = decision.name, False

    def leave_group(self, *, done: bool) -> None:
        """Leave the group; unless it is ``done``, tell the others, who may wait for this member in it."""
        with contextlib.suppress(RuntimeError):  # without a store they give up by themselves
            if self.group and not done:
                self._connected().set(f"over/{self.group}", "yes")
        self._leases.group = ""

    def decide(self, *, finished: bool = False) -> Generator[None, None, Decision]:
        """Return the next decision that this member is in, or the last one of a run that has ended.

        Pieces of versions that do not go on are dropped.

        Raises:
            TooFew: it was not reached in ``patience_s`` seconds.
            ValueError: the run has other settings.
        """
        until, self._waits = self._clock() + self._patience_s, False
        while True:
            try:
                decision = yield from self._decide(finished)
            except RuntimeError as error:  # the store is gone: keep everything, and try again
                self._store = None
                if self._clock() > until:
                    raise TooFew("the store does not answer") from error
                yield
                continue
            self._members, self.epoch, self.base = decision.members, decision.epoch, decision.base
            self._leases.watch(self._members)
            self.held = {name: piece for name, piece in self.held.items() if name == self.base}
            return decision

    def commit(self, decision: Decision, piece: Held | None) -> Generator[None, None, bool]:
        """Vote, and return whether the version exists; where this stays unknown, False, and both pieces are kept.

        Args:
            decision: of this epoch.
            piece: what this member has of the new version; None if the exchange failed here.
        """
        votes, end = [f"vote/{decision.name}/{uid}" for uid in decision.members], f"end/{decision.name}"
        own = f"vote/{decision.name}/{self._leases.uid}"
        try:
            store = self._connected()
            if piece is not None:
                self.held[decision.name] = piece
                yield
            while not store.check([end]):
                if piece is not None and not store.check([own]):
                    store.set(own, "yes")
                yield
                if piece is not None and store.check(votes):
                    store.compare_set(end, "", "commit")
                elif piece is None or self.broken:
                    store.compare_set(end, "", "abort")
            committed = store.get(end) == b"commit"
        except RuntimeError:
            self._store = None
            return False
        if committed:
            self.base, self.held = decision.name, {decision.name: self.held[decision.name]}
        else:
            self.held.pop(decision.name, None)
        return committed

    def _connected(self) -> KeyStore:
        """Return the store, which is told of the epoch if it has lost it."""
        if self._store is None:
            store = self._connect()
            while (told := store.add("epoch", 0)) < self.epoch:
                store.compare_set("epoch", str(told), str(self.epoch))
            self._store, self._store_name = store, name_of(store)
        return self._store

    def _decide(self, finished: bool) -> Generator[None, None, Decision]:
        store, uid = self._connected(), self._leases.uid
        epoch = max(store.add("epoch", 0), self.epoch)
        if epoch > self.epoch and (known := self._decision(store, epoch)) and uid in known.candidates:
            # The connection broke when this member was about to read it, and the others wait.
            until = self._clock() + max(self._patience_s, self._leases.lease_s)
            while self._leases.store != self._store_name:
                if self._clock() > until:
                    raise TooFew(_NO_HEARTBEATS)
                yield
                store.add("epoch", 0)  # RuntimeError if it is this connection's store that is gone
            return known
        epoch += 1
        rank = self._members.index(uid) if uid in self._members else Candidate.rank
        versions = {name: list(piece.workers) for name, piece in self.held.items()}
        own = Candidate(
            decided=self.epoch,
            base=self.base,
            held=versions,
            finished=finished,
            group=self.group,
            rank=rank,
            settings=f"{seed_of(self._settings):x}",
            address=self._address(),
            speed=self.speed,
            capacity=self.capacity,
        )
        came = found = self._clock()
        store.set(f"settings/{uid}", self._settings)
        while True:
            yield
            key, until, most_came = f"decision/{epoch}", self._clock() + self._patience_s, math.inf
            last: Decision | None = None
            here = f"here/{epoch}/{uid}"
            while not store.check([key]) or self._leases.store != self._store_name:
                if not store.check([here]):
                    store.set(here, json.dumps(vars(own)))
                yield
                if self._leases.store != self._store_name:  # the heartbeats have not found this store yet
                    if self._clock() - found > max(self._patience_s, self._leases.lease_s):
                        raise TooFew(_NO_HEARTBEATS)
                    continue
                found = self._clock()
                last = last or (None if self.epoch == epoch - 1 else self._decision(store, epoch - 1))
                before = last.members if last else self._members if self.epoch == epoch - 1 else ()
                if last and last.is_finished and own.settings in {c.settings for c in last.candidates.values()}:
                    return last
                self._leases.watch(before or self._members)
                alive = (self._leases.alive | set(before)) - self._leases.dead
                lost = self._clock() > until and self._leases.dead.issuperset(before)
                if lost or self._leases.left.issuperset(before):
                    before = ()
                awaited = frozenset(alive & set(before or alive))
                if self._late_s is not None and before:
                    punctual = frozenset(u for u in awaited if store.check([f"here/{epoch}/{u}"]))
                    most_came = min(most_came, self._clock() if 2 * len(punctual) > len(before) else math.inf)
                    if self._clock() - most_came > self._late_s:
                        without = self._proposal(store, epoch, before, alive, own.settings)
                        awaited = punctual if without.is_whole and self._is_enough(without) else awaited
                missed = [f"here/{epoch}/{u}" for u in awaited]
                waits_for_more = not before and len(alive) < self._maximum and self._clock() - came < self._grace_s
                if waits_for_more or not store.check(missed):
                    until = until if lost else self._clock() + self._patience_s  # others are alive, and on their way
                    if store.add("epoch", 0) >= epoch and not store.check([key]):
                        break  # the store has lost the decision, but others know it
                    continue
                self._check_settings(store, before or sorted(alive))
                proposal = self._proposal(store, epoch, before, alive, own.settings)
                enough = self._is_enough(proposal)
                if not (enough or self._waits):
                    self._waits = True
                    self._waiting(len(proposal.members))
                if self._clock() > until and not enough:
                    proposal = replace(proposal, ending=self._why(proposal))
                if proposal.is_whole and (enough or (proposal.ending and proposal.base)) and uid in (before or alive):
                    yield
                    store.compare_set(key, "", proposal.to_json())
                elif self._clock() > until:
                    raise TooFew(self._why(proposal))
            else:
                decision = Decision.from_json(store.get(key))
                store.compare_set("epoch", str(epoch - 1), str(epoch))
                if uid in decision.candidates:
                    return decision
            epoch += 1  # this member was late, or there were enough

    def _is_enough(self, proposal: Decision) -> bool:
        return len(proposal.members) >= self._minimum

    def _proposal(
        self, store: KeyStore, epoch: int, before: Sequence[str], alive: Collection[str], settings: str
    ) -> Decision:
        """Return the decision that this member would write now: who was there before comes first."""
        here = [u for u in sorted(alive) if store.check([f"here/{epoch}/{u}"])]
        said = {u: Candidate(**json.loads(store.get(f"here/{epoch}/{u}"))) for u in here}
        said = {u: candidate for u, candidate in said.items() if candidate.settings == settings}
        order = sorted(said, key=lambda uid: (uid not in before, said[uid].rank, uid))[: self._maximum]
        return Decision(epoch, self._leases.uid, {uid: said[uid] for uid in order})

    def _check_settings(self, store: KeyStore, members: Sequence[str]) -> None:
        """Raise ValueError if the first of the members that the store knows of has other settings."""
        if known := next((uid for uid in members if store.check([f"settings/{uid}"])), None):
            theirs = store.get(f"settings/{known}").decode()
            if theirs != self._settings:
                told = differences(json.loads(self._settings), json.loads(theirs), f"in {known}")
                raise ValueError(f"{told}; start all processes with the same settings")

    def _decision(self, store: KeyStore, epoch: int) -> Decision | None:
        """Return a decision, None if there is none or the store has lost it."""
        key = f"decision/{epoch}"
        return Decision.from_json(store.get(key)) if store.check([key]) else None

    def _why(self, proposal: Decision) -> str:
        """Return, in words, why ``proposal`` is no decision."""
        if not proposal.is_whole:
            sources = zip(proposal.workers, proposal.sources, strict=True)
            gone = ", ".join(uid for uid, source in sources if source is None) or "all members"
            return f"{gone} died in one round, so nobody has what they held"
        if not self._is_enough(proposal):
            num = len(proposal.members)
            return f"{num} process{'es' * (num != 1)}, expected at least {self._minimum}"
        return "the members of the run do not answer"
