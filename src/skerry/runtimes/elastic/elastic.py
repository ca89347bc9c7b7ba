"""Elastic runs: processes join by name and may come and go. For trusted networks only: nothing is encrypted.

The store that they meet in is a process of its own (``serve_store``). Whoever reaches its port can take part.
"""

import atexit
import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch.distributed as dist

from skerry.runtimes.distributed.meeting import PeerLost, Place, versions
from skerry.runtimes.elastic.checked_store import CheckedStore
from skerry.runtimes.elastic.generation import Generation, MembersChanged, wait
from skerry.runtimes.elastic.leases import KeyStore, Leases
from skerry.runtimes.elastic.lines import Lines
from skerry.runtimes.elastic.membership import Decision, Membership, TooFew
from skerry.runtimes.elastic.pieces import Held
from skerry.runtimes.runtime import Change
from skerry.whole_number import check_whole_number

_CONNECT_S, _RETRY_S = 3.0, 0.2
_GROUP_S = 60.0
"""Seconds in which members must connect to each other."""
_BEATS = 6
"""Heartbeats in a lease."""

T = TypeVar("T")


def serve_store(port: int, host: str = "127.0.0.1") -> Any:
    """Serve the store of elastic runs as long as the returned object is kept.

    It holds a few hundred bytes per member and round, and no weights. If it is lost, members wait for ``patience_s``
    seconds for another one at the same address.

    Args:
        port: 0 for a free one; ``serve_store(0).port``.
        host: by which this machine is reached.

    Raises:
        ValueError: the host is not this machine, or the port is in use.
    """
    _check_free(host, port)
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_CONNECT_S)
    )


def _check_free(host: str, port: int) -> None:
    """Raise ValueError if ``host`` is not this machine, or its port is not free."""
    for name, number in ((host, 0), (None, port)):  # a store listens on all of a machine's addresses
        try:
            found = socket.getaddrinfo(name, number, socket.AF_UNSPEC, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, where = found[0]
            with socket.socket(family) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(where)
        except OSError as error:
            if not number:
                raise ValueError(
                    f"{host}: not an address of this machine; give one that 'hostname -I' lists"
                ) from error
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be served ({error.strerror})"
            raise ValueError(f"port {port} {why}; choose another") from error


class Elastic:
    """A place in a run whose processes may come and go; as a context manager it leaves in the end.

    A run begins with ``minimum`` processes. Others join at the next round. If one is lost, the others go on: its units
    have the values with which it began the round, of which another process has a copy (docs/elastic.md).

    Args:
        address: ``"host:port"`` of the store (``skerry.runtimes.serve_store``).
        name: of the run.
        minimum: processes without which the run waits. With more than half of them it cannot split.
        maximum: processes at most; more wait for a place.
        lease_s: a process that gives no sign of life for so many seconds is lost.
        grace_s: seconds for which the first round waits for more processes than the minimum, up to the maximum.
        patience_s: seconds for which the others wait if there are too few.
        late_s: if more than half of the processes have ended a round, the others have so many seconds; who is later is
            left out of that round, as if it were lost, and joins the next one. None: all wait as long as it lives. With
            2 processes it has no effect, and nobody is left out without whom the run cannot go on.
        by_speed: whether ``runtime.capacities`` follow the measured speeds of the workers; give them to
            ``skerry.ist``. Units are dealt anew when one has changed by more than 15%. Otherwise all are 1.
        settings: what must be the same in all processes, beside versions, ``late_s`` and ``by_speed``; who has others
            is refused before it joins.
        say: gets a line about what this process waits for; by default nothing is said.

    Attributes:
        changes: what each change of members meant.

    Raises:
        ValueError: a value out of range.

    Example::

        def training(runtime):
            n = runtime.num_processes
            data = skerry.Shards(x, y, skerry.split(y, n, "iid", seed=0), batch_size=20, seed=0)
            return skerry.train(make_model(), loss_fn, data, algorithm=skerry.ist(n), runtime=runtime, num_rounds=100)

        with skerry.Elastic("10.0.0.1:29400", "digits", minimum=2, maximum=8) as elastic:
            result = elastic.run(training)
    """

    def __init__(
        self,
        address: str,
        name: str = "run",
        *,
        minimum: int = 2,
        maximum: int = 64,
        lease_s: float = 10.0,
        grace_s: float = 5.0,
        patience_s: float = 300.0,
        late_s: float | None = None,
        by_speed: bool = False,
        settings: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                f"address={address!r}: expected 'host:port' of a store that skerry.runtimes.serve_store serves"
            )
        check_whole_number("minimum", minimum, 1)
        check_whole_number("maximum", maximum, minimum)
        for what, value in (("lease_s", lease_s), ("grace_s", grace_s), ("patience_s", patience_s), ("late_s", late_s)):
            if value is not None and not value > 0:
                raise ValueError(f"{what}={value}: expected a positive number of seconds")
        self._place = Place(host=host, port=int(port), rank=0, num_processes=maximum)
        self._name, self._where = name, f"'{name}' at {address}"
        self._address, self._remedy = address, f"start one there: skerry store {address}"
        self._say, self._minimum, self._patience_s, self._told = say, minimum, patience_s, False
        self._lines: Lines | None = None
        late = {} if late_s is None else {"late_s": f"{late_s:g}"}  # it is the others that it leaves out
        self._by_speed, widths = by_speed, {"by_speed": "True"} if by_speed else {}
        self.uid = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._leases = Leases(self.uid, lease_s, time.monotonic)
        self._membership = Membership[Held](
            self._checked,
            self._leases,
            time.monotonic,
            minimum=minimum,
            maximum=maximum,
            grace_s=grace_s,
            patience_s=patience_s,
            late_s=late_s,
            settings={"versions": versions(), **late, **widths, **(settings or {})},
            waiting=self._say_waiting,
            address=lambda: self._lines.address if self._lines else "",
        )
        self.changes = list[Change]()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="skerry-lease", daemon=True)

    def run(self, training: Callable[[Generation], T]) -> T:
        """Return what ``training`` returns; it is called anew whenever the members have changed, and goes on then.

        Args:
            training: trains by ``skerry.train`` or ``Session`` with the runtime that it gets, which has one worker per
                process: ``runtime.num_processes``.

        Raises:
            TooFew: there are too few processes, or the store does not answer.
            ValueError: the run has other settings.
            PeerLost: the run has ended before this process took part.
        """
        self._place.use_its_interface()
        if not self._heart.is_alive():
            self._heart.start()
            atexit.register(self.leave)  # the interpreter must not end while a thread is in a call of torch
        try:
            return self._run(training)
        except TooFew as error:
            remedy = f"; {self._remedy}" if isinstance(error.__cause__, RuntimeError) else ""
            raise TooFew(f"the run {self._where} cannot go on: {error}{remedy}") from None

    def _run(self, training: Callable[[Generation], T]) -> T:
        decision: Decision | None = None
        generation: Generation | None = None
        results = list[T]()
        while True:
            decision = decision or wait(self._membership.decide(finished=bool(results)))
            if decision.is_finished:
                if not results:
                    raise PeerLost(f"the run {self._where} has ended; give another one another name")
                return results[0]
            results.clear()
            self._watch(decision)
            if generation is not None:  # others have not ended yet, and this process trains again
                generation.group.close()
            generation, now, decision = None, decision, None
            try:
                store = self._connect_for_group()
                generation = Generation(self.uid, now, self._membership, store, by_speed=self._by_speed)
                results.append(training(generation))
            except MembersChanged as changed:
                decision = changed.decision
            except PeerLost:
                pass  # it is known who is lost when the next decision is made
            finally:
                self._membership.leave_group(done=bool(results))
                if generation is not None and not results:  # else the result may need it
                    generation.group.close()
                if generation is not None and generation.change is not None and generation.is_committed:
                    self.changes.append(generation.change)

    def leave(self) -> None:
        """Leave the run: others do not wait until the lease ends."""
        atexit.unregister(self.leave)
        self._ended.set()
        if self._lines is not None:
            self._lines.wake()
        if self._heart.ident is not None:  # it was started
            self._heart.join()
            with contextlib.suppress(RuntimeError):
                self._leases.leave(self._checked())
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def _watch(self, decision: Decision) -> None:
        """Let the heartbeats see at once when a member's process ends."""
        if self._lines is not None:
            others = {uid: c.address for uid, c in decision.candidates.items() if uid != self.uid and c.address}
            self._lines.addresses = others
            self._lines.wake()

    def _connect(self, timeout_s: float = _CONNECT_S) -> Any:
        self._reach(time.monotonic() + timeout_s)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self._place.host,
            self._place.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
        return dist.PrefixStore(f"skerry-elastic/{self._name}", store)  # type: ignore[attr-defined]

    def _connect_for_group(self) -> Any:
        try:
            return self._connect(_GROUP_S)
        except RuntimeError as error:  # the next decision waits for another store
            raise PeerLost(f"the store is lost: {error}") from error

    def _checked(self) -> KeyStore:
        return CheckedStore(self._connect())

    def _reach(self, until: float) -> None:
        """Wait for the port to answer, since ``TCPStore`` writes pages if it does not; RuntimeError if late."""
        while True:
            try:
                with socket.create_connection((self._place.host, self._place.port), _CONNECT_S) as reached:
                    if self._lines is None and threading.current_thread() is not self._heart:
                        self._lines = Lines(reached.getsockname()[0])
            except OSError as error:
                if not (self._told or self._ended.is_set() or threading.current_thread() is self._heart):
                    self._told = True
                    self._say(f"no store at {self._address} yet; {self._remedy}; trying for {self._patience_s:g} s")
                if self._ended.is_set() or time.monotonic() > until:
                    raise RuntimeError(f"no store: {error}") from error
                time.sleep(_RETRY_S)
            else:
                self._told = False
                return

    def _say_waiting(self, num: int) -> None:
        here = f"{num} of {self._minimum} processes {'is' if num == 1 else 'are'} here"
        self._say(f"{here}; all must give the same name, '{self._name}', and the same store, {self._address}")

    def _wait_for_beat(self) -> list[str]:
        """Wait until it is time for a heartbeat, or a member has ended; return those that have."""
        beat_s = self._leases.lease_s / _BEATS
        if self._lines is not None:
            return self._lines.wait(beat_s)
        self._ended.wait(beat_s)
        return []

    def _beat(self) -> None:
        """Keep the lease, over a connection of its own, since a call may block the other one."""
        store: KeyStore | None = None
        while not self._ended.is_set():
            try:
                store = store or self._checked()
                self._leases.beat(store, self._wait_for_beat())
            except Exception as error:  # without heartbeats the others lose this process: never end
                store, self._leases.store = None, ""
                if not isinstance(error, RuntimeError | OSError):
                    self._say(f"a heartbeat failed: {type(error).__name__}: {error}; trying again")
