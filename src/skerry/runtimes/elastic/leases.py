"""Leases: who is alive, judged by counters in the store and by one's own clock, so that clocks may differ."""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

_FORGOTTEN = 10
"""Leases after which a silent member is taken from the roster."""
_LEFT = -(2**40)
"""A counter that is less says that the member has left."""


class KeyStore(Protocol):
    """What membership needs of a store; torch's ``TCPStore`` has it. A store that is gone raises RuntimeError."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return it."""
        ...

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def get(self, key: str) -> bytes:
        """Return a value that exists."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Tell whether all keys exist."""
        ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write ``desired`` if the value is ``expected`` (empty: if the key is missing); return the value then."""
        ...


class Leases:
    """The leases of all members, as one of them sees them.

    Args:
        uid: of this member, another one for each life of a process.
        lease_s: a member whose counter stands still for so many seconds is dead.
        clock: of this process, in seconds.

    Attributes:
        alive: members that are alive, with this one.
        dead: members that are in the roster or watched, and not alive.
        left: those of them that have left by themselves.
        store: the name of the store, which another one in its place does not have; empty while it does not answer.
        group: the group that this member exchanges in, empty for none.
        given_up: whether another member has given up that group.
    """

    def __init__(self, uid: str, lease_s: float, clock: Callable[[], float]) -> None:
        self.uid, self.lease_s = uid, lease_s
        self.alive, self.dead, self.left = frozenset({uid}), frozenset[str](), frozenset[str]()
        self.store, self.group, self.given_up = "", "", False
        self._clock, self._watched, self._beaten = clock, frozenset[str](), clock()
        self._seen = dict[str, tuple[int, float]]()

    def watch(self, uids: Sequence[str]) -> None:
        """Watch these members, even if the roster does not have them."""
        self._watched = frozenset(uids)

    def beat(self, store: KeyStore, ended: Sequence[str] = ()) -> None:
        """Raise the counter of this member, and look at those of the others; RuntimeError if the store is lost.

        Args:
            store: the store.
            ended: members whose process has ended, as far as is known: their leases end, unless they beat again.
        """
        try:
            for uid in ended:
                self._seen[uid] = store.add(f"beat/{uid}", 0), self._clock() - self.lease_s
            self._beat(store)
        except RuntimeError:
            self.store = ""
            raise

    def _beat(self, store: KeyStore) -> None:
        roster = _roster(store)
        if self.uid not in roster:
            _change(store, roster, [*roster, self.uid])
        store.add(f"beat/{self.uid}", 1)
        now = self._clock()
        was_stopped, self._beaten = now - self._beaten > self.lease_s, now
        seen, alive = dict[str, tuple[int, float]](), {self.uid}
        for uid in sorted({*roster, *self._watched}):
            count = store.add(f"beat/{uid}", 0)
            known = self._seen.get(uid)
            # All counters that stood still are given another lease if this process stood still itself.
            seen[uid] = known if known and known[0] == count and not was_stopped else (count, now)
            if count > _LEFT and now - seen[uid][1] < self.lease_s:
                alive.add(uid)
        self.given_up = bool(self.group) and store.check([f"over/{self.group}"])
        # ``left`` comes first: another thread that sees somebody dead must see that it has left.
        self.left = frozenset(uid for uid, (count, _) in seen.items() if count <= _LEFT)
        self._seen, self.alive, self.dead = seen, frozenset(alive), frozenset(seen) - alive
        self.store = name_of(store)
        old = [u for u in roster if now - seen[u][1] > _FORGOTTEN * self.lease_s]
        if old:
            _change(store, roster, [u for u in roster if u not in old])

    def leave(self, store: KeyStore) -> None:
        """Tell the others not to wait for the lease to end; no heartbeat may follow."""
        store.set(f"beat/{self.uid}", f"{2 * _LEFT}")


def name_of(store: KeyStore) -> str:
    """Return the name of a store, which the first member that asks gives it."""
    return store.compare_set("name", "", uuid.uuid4().hex).decode()


def _roster(store: KeyStore) -> list[str]:
    return list(json.loads(store.get("roster"))) if store.check(["roster"]) else []


def _change(store: KeyStore, old: Sequence[str], new: Sequence[str]) -> None:
    """Write a new roster unless another member has changed it; then the next heartbeat tries again."""
    store.compare_set("roster", json.dumps(old) if old else "", json.dumps(new))
