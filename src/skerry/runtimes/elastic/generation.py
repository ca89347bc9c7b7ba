"""A generation: the runtime of a session while the members of an elastic run are the same.

It has a gloo group of its own (``group.py``). When the members' leases say that somebody is lost, the session ends by
``PeerLost``. A new generation goes on from the pieces that its members hold (``pieces.py``).
"""

import contextlib
import copy
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.model.optimizer_state import SEPARATOR
from skerry.partitions.assignment import Assignment
from skerry.partitions.capacities import capacities, differ
from skerry.plan.table import Plan
from skerry.runtimes.distributed.meeting import PeerLost
from skerry.runtimes.distributed.sharded import Sharded
from skerry.runtimes.distributed.wire import Wire
from skerry.runtimes.elastic.checked_store import opened, sealed
from skerry.runtimes.elastic.group import Group
from skerry.runtimes.elastic.membership import Decision, Membership, TooFew, buddy_of
from skerry.runtimes.elastic.pieces import Held, Role, deal_again, num_bytes, packed, parts, unpacked
from skerry.runtimes.peers import Peers
from skerry.runtimes.runtime import RESTING, Beginning, Change, Handover, Report

_POLL_S = 0.005
_ROUNDS_TIMED = 5
"""Rounds whose median is a member's speed, and without a new deal: in one of them another program may run."""
_CHUNK = 2**26  # bytes of a copy that are sent at a time

T = TypeVar("T")


class MembersChanged(Exception):
    """The members of the run have changed, or an exchange was given up; ``decision`` has the new ones, if known."""

    def __init__(self, decision: Decision | None) -> None:
        super().__init__("the members of the run have changed; train in Elastic.run, which goes on with the new ones")
        self.decision = decision


def why_not_elastic(algorithm: Algorithm) -> str:
    """Return why an algorithm cannot run with changing members, empty if it can."""
    why = algorithm.why_same_workers
    why = why or ("it averages gradients in every step" if algorithm.synchronous else "")
    why = why or ("its clients train in one process" if algorithm.clients is not None else "")
    why = why or ("overlap hides an exchange in the next round" if algorithm.overlap else "")
    return f"'{algorithm.name}' cannot run with processes that come and go: {why}" if why else ""


def wait(steps: Generator[None, None, T]) -> T:
    """Run a generator that yields where it waits; return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        time.sleep(_POLL_S)


class Generation(Peers):
    """The runtime of a member; ``Elastic.run`` makes it and hands it to the training.

    Args:
        uid: of this member.
        decision: who takes part.
        membership: this member's part of the protocol.
        store: a connection to the store.
        by_speed: whether ``capacities`` follow the measured speeds.

    Attributes:
        capacities: of the workers' subnets, relative to each other.
    """

    def __init__(
        self, uid: str, decision: Decision, membership: Membership[Held], store: Any, *, by_speed: bool = False
    ) -> None:
        super().__init__(decision.members.index(uid), len(decision.members), "exact")
        self.membership, self._decision = membership, decision
        self.goes_on, self.is_committed, self._by_speed = bool(decision.base), False, by_speed
        now = tuple(c.capacity for c in decision.candidates.values())
        now, wanted = tuple(len(now) * each / sum(now) for each in now), self._capacities(decision)
        self.capacities = wanted if differ(now, wanted) else now
        if not math.isclose(membership.capacity, self.capacities[self.rank]):
            membership.capacity, membership.speed = self.capacities[self.rank], 0.0  # it was that of another width
        self._rounds, self._speeds = 0, deque[float](maxlen=_ROUNDS_TIMED)
        self.state = ""
        self._state: Any = None
        self.ending = TooFew(decision.ending) if decision.ending else None
        membership.join_group(decision)
        prefixed = dist.PrefixStore(f"group/{decision.name}", store)  # type: ignore[attr-defined]
        with self.peers():
            self.group = Group(prefixed, self.rank, self.num_processes, lambda: membership.broken)

    @contextlib.contextmanager
    def peers(self) -> Iterator[None]:
        """Turn an error about a lost process into ``PeerLost``."""
        try:
            yield
        except (PeerLost, NotImplementedError):
            raise
        except RuntimeError as error:
            raise PeerLost(f"{self.where()}: {str(error).partition(chr(10))[0][:120]}") from error

    def all_gather(self, row: Tensor) -> list[Tensor]:
        """Return the rows of all members."""
        with self.peers():
            return self.group.all_gather(row)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all members."""
        with self.peers():
            return self.group.total(tensor).to(tensor.device)

    def sum_in_place(self) -> None:
        """Return None: there is no faster way."""

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        """Raise ValueError; ``resume`` has refused overlap."""
        raise ValueError("overlap: an elastic run exchanges between rounds only")

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Raise ValueError; ``resume`` has refused it."""
        raise ValueError("ddp: the workers of an elastic run exchange between rounds only")

    def resume(self, algorithm: Algorithm, state: Any, sizes: Mapping[str, Tensor], plan: Plan) -> "Memory | None":
        """Return what the members hold of the training, None if it begins; see ``Runtime``."""
        if why := why_not_elastic(algorithm):
            raise ValueError(why)
        self._note(state)
        if not self._decision.base:
            return None
        held = self.membership.held.get(self._decision.base)
        of_all: list[Any] = [json.loads(text) for text in self.gather(json.dumps(held and _said(held)))]
        sources = [source for source in self._decision.sources if source is not None]
        trained = any(said and said["handed_over"] for said in of_all)  # else all is as the round began
        roles = []
        for source in sources:
            said = of_all[source.rank]
            counts = not source.is_copy and said["good"] and said["handed_over"] is trained
            roles.append(Role(source.rank, source.is_copy, counts))
        first = of_all[sources[0].rank]  # whose process writes the records, unless it is lost
        memory = Memory(self, plan, {**sizes, **_read_sizes(first["optimizer"])}, roles, held)
        memory.state = _read(first["state"], state)
        memory.state.num_workers = 0  # any number may go on
        good = [worker for worker, role in enumerate(roles) if role.trained]
        refused = tuple(w for w, role in enumerate(roles) if not role.is_copy and not of_all[role.rank]["good"])
        if trained:
            told = [of_all[sources[worker].rank]["told"] for worker in good]
            _advance(memory.state, memory.layout, good, bool(refused))
            for name, at in (("flop", 1), ("local_s", 2)):
                memory.state.totals[name] += sum(each[at] for each in told) / len(roles)
        memory.state.totals["time_s"] += first["time_s"]
        self._note(memory.state)
        held_by_trained = memory.layout.held[good].any(0)
        members, workers = self._decision.members, self._decision.workers
        self.change = Change(
            round=memory.state.round,
            members=members,
            joined=tuple(uid for uid in members if uid not in workers),
            lost=tuple(uid for uid in workers if uid not in members),
            units_lost=int((memory.layout.held.any(0) & ~held_by_trained).sum()) if trained else 0,
            unrecorded=memory.state.round > 0 and (trained or sources[0].is_copy or not first["recorded"]),
            train_loss=sum(each[0] for each in told) / len(told) if trained and told else math.nan,
            refused=refused if trained else (),
            speeds=tuple(candidate.speed for candidate in self._decision.candidates.values()),
        )
        return memory

    def gather(self, text: str) -> list[str]:
        """Return the texts of all members; PeerLost if their bytes were changed, or say that gigabytes follow."""
        try:
            with self.peers():
                return [opened("a member's text", told.encode()).decode() for told in super().gather(sealed(text))]
        except (ValueError, MemoryError) as error:
            raise PeerLost(f"{self.where()}: a member's text was changed on the way") from error

    def went_on(self, state: Any) -> None:
        """Note the state of the training between two rounds, and that the last one has its record."""
        self._note(state)
        held = self.membership.held[self.membership.base]
        held.state, held.began, held.recorded = self.state, time.monotonic(), True

    def _note(self, state: Any) -> None:
        self._state, self.state = copy.copy(state), _written(state)

    def advance(self, layout: Assignment, good: Sequence[int], *, refused: bool) -> None:
        """Note that a round is over, before the session has counted its times."""
        state = _read(self.state, self._state)
        _advance(state, layout, good, refused)
        self._note(state)

    def keep(self, beginning: Beginning) -> "Copied":
        """Make the store, and let all members agree on it."""
        if beginning.saved is not None:  # perhaps from a checkpoint, which ``resume`` has not seen
            self._note(beginning.saved.state)
        wire = _GroupWire(self)
        store = Copied(self, wire, beginning)
        piece = None
        with contextlib.suppress(PeerLost):
            piece = store.copied(recorded=self.change is None or not self.change.unrecorded)
        if not wait(self.membership.commit(self._decision, piece)):
            raise MembersChanged(None)
        self.is_committed = True
        if isinstance(beginning.saved, Memory):
            beginning.saved.state.totals["bytes_sent"] += store.bytes_sent
        return store

    def next_decision(self) -> Decision:
        """Return the next decision; MembersChanged if it has other members."""
        decision = wait(self.membership.decide())
        same_group = all(c.group == self.membership.group for c in decision.candidates.values())
        if decision.members != self._decision.members or decision.base != self._decision.name or not same_group:
            raise MembersChanged(decision)
        self._rounds += 1
        if self._rounds >= _ROUNDS_TIMED and differ(self.capacities, self._capacities(decision)):
            raise MembersChanged(decision)
        self._decision = decision
        return decision

    def timed(self, speed: float) -> None:
        """Note the local steps per second of a round; the median of the latest ones is this member's speed."""
        self._speeds.append(speed)
        if len(self._speeds) == _ROUNDS_TIMED:
            self.membership.speed = statistics.median(self._speeds)

    def _capacities(self, decision: Decision) -> tuple[float, ...]:
        if not self._by_speed:
            return (1.0,) * len(decision.members)
        each = decision.candidates.values()
        return capacities([c.capacity for c in each], [c.speed for c in each])

    @property
    def members(self) -> tuple[str, ...]:
        """The members, by rank."""
        return self._decision.members

    def pass_on(self, piece: Tensor, size: int) -> Tensor:
        """Send a piece to this worker's buddy; return the one of ``size`` bytes that comes from its predecessor."""
        num, arriving = self.num_processes, torch.empty(size, dtype=torch.uint8)
        if num == 1:
            return arriving[:0]
        buddy, before = buddy_of(self.rank, num), (self.rank - 1) % num

        def send() -> None:
            works = [self.group.send(part, buddy, 1) for part in torch.split(piece, _CHUNK) if len(part)]
            works += [self.group.receive(part, before, 1) for part in torch.split(arriving, _CHUNK) if len(part)]
            for work in works:
                work.wait()

        with self.peers():
            self.group.watched(send)
        return arriving


def _said(held: Held) -> dict[str, Any]:
    """Return what a member says of what it holds."""
    names = ("handed_over", "good", "recorded", "told", "state", "optimizer")
    return {name: getattr(held, name) for name in names} | {"time_s": time.monotonic() - held.began}


def _written_sizes(sizes: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...], str]]:
    """Return the sizes of optimizer state that travels, which newcomers do not know."""
    return [(n, tuple(t.shape), str(t.dtype).split(".")[1]) for n, t in sizes.items() if SEPARATOR in n]


def _read_sizes(written: list[tuple[str, list[int], str]]) -> dict[str, Tensor]:
    return {n: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for n, shape, dtype in written}


def _written(state: Any) -> str:
    numbers = {name: value for name, value in vars(state).items() if name != "trained"}
    return json.dumps([numbers, state.trained.tolist()])


def _read(text: str, like: Any) -> Any:
    numbers, trained = json.loads(text)
    return replace(like, **numbers, trained=torch.tensor(trained, dtype=torch.int64))


def _advance(state: Any, layout: Assignment, good: Sequence[int], refused: bool) -> None:
    """Count a round, as the end of one does (``training/phases/exchange_phase.py``)."""
    state.trained += layout.held[list(good)].sum(0)
    state.round += 1
    state.bad_rounds = state.bad_rounds + 1 if refused else 0


class _GroupWire(Wire):
    """A wire over a group that torch does not know by name."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation.num_processes, generation.peers)
        self._members = generation.group

    def irecv(self, buffer: Tensor, peer: int) -> Any:
        return self._members.receive(buffer, peer)

    def isend(self, buffer: Tensor, peer: int) -> Any:
        return self._members.send(buffer, peer)


class Memory:
    """What the members hold of a training that goes on, as a checkpoint is read (``Saved``)."""

    def __init__(
        self,
        generation: Generation,
        plan: Plan,
        sizes: Mapping[str, Tensor],
        roles: Sequence[Role],
        held: Held | None,
    ) -> None:
        self._generation, self._plan, self._roles, self._held = generation, plan, roles, held
        self.sizes = {name: torch.empty_like(t, device="meta") for name, t in sizes.items()}
        layout = [held.layout.held.int() if held is not None else torch.zeros(len(roles), plan.num_units).int()]
        holders = sum(generation.all_gather(torch.tensor([int(held is not None)])))
        self.layout = Assignment(generation.total(layout[0]) == holders)
        self.state: Any = None

    def own(self, worker: int, assignment: Assignment) -> dict[str, Tensor]:
        """Return the new piece of ``worker``; every member must call it."""
        mine, held = dict[int, Mapping[str, Tensor]](), self._held
        for old, role in enumerate(self._roles):
            if role.rank == self._generation.rank:
                assert held is not None
                piece = held.copy if role.is_copy else held.own
                mine[old] = unpacked(piece, self._plan, self.sizes, self.layout, old)
        return deal_again(self._plan, self.sizes, mine, self._roles, self.layout, assignment, worker, self._total)

    def _total(self, tensor: Tensor) -> Tensor:
        num = self._generation.num_processes
        self.state.totals["bytes_sent"] += 2 * (num - 1) / num * tensor.nbytes  # of a ring
        return self._generation.total(tensor)

    def of_worker(self, prefix: str, worker: int) -> dict[str, Tensor]:
        """Return nothing: no worker keeps anything for itself."""
        return {}

    def read(self, name: str, cut: Any = ()) -> Tensor:
        """Raise: ``own`` has everything."""
        raise AssertionError(name)


class Copied(Sharded):
    """The store of a member: what a process stores, a copy of its predecessor's, and all-or-nothing exchanges."""

    def __init__(self, generation: Generation, wire: Wire, beginning: Beginning) -> None:
        super().__init__(generation, wire, beginning)
        self._generation, self._bytes_copied = generation, 0

    @property
    def bytes_sent(self) -> float:
        """Bytes this process has sent for exchanges and copies."""
        return super().bytes_sent + self._bytes_copied

    def copied(self, *, recorded: bool) -> Held:
        """Send a copy of what this process stores to its buddy; return what it holds then."""
        generation, rank = self._generation, self._generation.rank
        own = self._packed(self.tensors)
        before = (rank - 1) % generation.num_processes
        from_before = generation.pass_on(own, num_bytes(self.plan, self.sizes, self.assignment, before))
        self._bytes_copied += len(own) * (generation.num_processes > 1)
        return Held(
            generation.members,
            self.assignment,
            own,
            from_before,
            state=generation.state,
            optimizer=_written_sizes(self.sizes),
            began=time.monotonic(),
            recorded=recorded,
        )

    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Exchange with all members, or with none: then raise MembersChanged, and a new generation goes on.

        If members have come or gone, the pieces are dealt to the new members by the new generation instead.
        """
        generation, membership = self._generation, self._generation.membership
        (own,), held = mine, membership.held[membership.base]
        self._check(own.tensors)
        if own.report.good:
            held.own = self._packed(own.tensors)
        held.handed_over, held.good = True, own.report.good
        held.told = own.report.loss, own.report.flop, own.report.local_s
        if own.report.local_s > 0:
            generation.timed(own.report.num_steps / own.report.local_s)
        decision = generation.next_decision()
        reports, piece = list[Report](), None
        with contextlib.suppress(PeerLost), generation.peers():
            now = self.assignment
            reports = generation.group.watched(lambda: Sharded.exchange(self, mine, then))
            good = [report.worker for report in reports if report.good]
            generation.advance(now, good, refused=len(good) < len(reports))
            piece = self.copied(recorded=False)
        if not wait(membership.commit(decision, piece)):
            raise MembersChanged(None)
        return reports

    def _packed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        piece = {**tensors, **{f"{RESTING}{name}": tensor for name, tensor in self._shard.owned.items()}}
        order = parts(self.plan, self.sizes, self.assignment, self._generation.rank)
        return packed(piece, [key for key, _, _ in order])

    def _gather(self, names: Sequence[str], *, only_first: bool) -> dict[str, Tensor]:
        with self._generation.peers():
            return self._generation.group.watched(lambda: Sharded._gather(self, names, only_first=only_first))
