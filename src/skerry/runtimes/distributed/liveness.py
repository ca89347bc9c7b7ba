"""Liveness: heartbeats between processes, so that a lost one is named and no process hangs.

A process in long local steps is slow; one that is stopped or cut off is lost. A timeout on the exchange alone cannot
tell them apart. So a thread of each process increments a counter in the group's store, twice a second, and reads the
counters of the others. While a call holds the interpreter's lock no thread runs, so a second counter goes up as long as
the process uses the processor (``busy.py``). The first process that finds both standing still says whose they are, and
all end with that rank in their message. When a connection breaks (at once if a process is killed), the counters tell
who was lost. A process that fails says why (``meeting.py``).
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

from skerry.runtimes.distributed import busy
from skerry.runtimes.distributed.meeting import BUSY, ENDING, ENDS, Meeting, PeerLost, Place

_CONNECT_S = 60.0
"""Seconds in which gloo must connect processes that have all come."""
_BEATS = 4
"""If a connection is broken, a process that misses so many heartbeats is lost."""


class Liveness:
    """The heartbeat thread of a process.

    Args:
        place: of the group's store, to which it opens a connection of its own; all processes have come.
        timeout_s: a process without a heartbeat for so many seconds is lost.
        on_lost: called with one line, in the thread; it should end the process.
    """

    def __init__(self, place: Place, timeout_s: float, on_lost: Callable[[str], None]) -> None:
        self._rank, self._timeout_s, self._on_lost = place.rank, timeout_s, on_lost
        self._interval = min(0.5, timeout_s / 10)
        self._meeting = Meeting(place, place.open(max(1.0, timeout_s * 0.8)))
        self._where = "round 0, start"
        self._seen: dict[int, tuple[tuple[str, str], float]] = {}
        key = f"/{place.prefix}/{BUSY}/{place.rank}"
        self._outside = busy.start(place.host, place.port, key, self._interval)
        self._suspicious: float | None = None
        self._signals: socket.socket | None = None
        self._before: Callable[[], None] = lambda: None  # restores the handler of SIGTERM
        self._beaten = time.monotonic()
        self._ended, self._all_end = threading.Event(), threading.Event()
        self._at_end = False
        self._waits: dict[int, float] = {}  # since when each thread of this process waits for others
        self._thread = threading.Thread(target=self._run, name="skerry-liveness", daemon=True)
        self._thread.start()

    def at(self, where: str) -> None:
        """Note where this process is: round and stage."""
        self._where = where

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """Note that the block waits for all others: one that ends meanwhile would never come."""
        self._waits[threading.get_ident()] = time.monotonic()
        try:
            yield
        finally:
            self._waits.pop(threading.get_ident(), None)

    def end_together(self) -> None:
        """Wait until all others end as well, then stop; an other process that waits for this one ends both."""
        self._at_end = True
        self._all_end.wait()
        self.stop()

    def stop(self) -> None:
        """End the thread: the work is done, and others that end are not lost.

        The first process, with which the store may end, waits until all others have come here.
        """
        self._ended.set()
        self._before()
        self._thread.join()
        self._end_outside()
        with contextlib.suppress(RuntimeError):  # the store is gone
            self._meeting.leave(self._timeout_s)

    def tell(self, why: str) -> None:
        """Tell the others why this process ends, which reports it by itself."""
        self._ended.set()
        self._thread.join(self._interval)
        self._end_outside()
        with contextlib.suppress(RuntimeError):  # the store is gone
            self._meeting.tell(why)

    def _end_outside(self) -> None:
        if self._outside is not None:
            self._outside.terminate()
            self._outside.wait()

    def suspect(self) -> None:
        """After a broken connection: wait until it is known who is lost, which ends this process."""
        self._suspicious = self._suspicious or time.monotonic()
        self._thread.join(self._timeout_s)

    def delay_sigterm(self) -> None:
        """Let SIGTERM end this process only once it is known whether another one is lost.

        torchrun sends it to all as soon as one has died, before they can report which. The thread learns of the signal
        even while the main thread waits in gloo.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._signals, writer = socket.socketpair()
        self._signals.setblocking(False)
        writer.setblocking(False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def put_back() -> None:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGTERM, handler)
            writer.close()

        self._before = put_back

    def _run(self) -> None:
        count = 0
        while not self._ended.wait(self._interval):
            count += 1
            if self._signals is not None:
                with contextlib.suppress(BlockingIOError):
                    if signal.SIGTERM in self._signals.recv(64):
                        self._suspicious = self._suspicious or time.monotonic()
            try:
                failure = self._beat(count)
            except RuntimeError:
                failure = _gone("the group's store, on the machine of rank 0,")
            if failure is not None and not self._ended.is_set():
                with contextlib.suppress(RuntimeError):
                    self._meeting.leave(3 * self._interval)
                self._on_lost(f"rank {self._rank}, {self._where}: {failure}")
                return
            if self._suspicious and time.monotonic() - self._suspicious > 3 * _BEATS * self._interval:
                self._on_lost(f"rank {self._rank}, {self._where}: terminated, or cut off from another process")
                return

    def _beat(self, count: int) -> str | None:
        """Increment the counter, read those of the others, and return why this process must end, if it must."""
        signs, outside, failure = self._meeting.beat(ENDS if self._at_end else f"{count}")
        now = time.monotonic()
        if now - self._beaten > _BEATS * self._interval:  # this process was stopped itself
            self._seen = {rank: (sign, now) for rank, (sign, _) in self._seen.items()}
        self._beaten = now
        for rank, sign in enumerate(zip(signs, outside, strict=True)):
            if rank == self._rank or sign[0] in ENDING or rank not in self._seen or sign != self._seen[rank][0]:
                self._seen[rank] = (sign, now)
        if failure is not None:
            return failure
        ended = [rank for rank, sign in enumerate(signs) if rank != self._rank and sign in ENDING]
        if self._at_end and len(ended) == len(signs) - 1:
            self._all_end.set()
        if ended and now - min(self._waits.values(), default=now) > self._timeout_s:
            text = f"rank {ended[0]} has ended, and others wait for it; see its output"
            return self._meeting.tell_of_lost(ended[0], text)
        silent, rank = max((now - at, rank) for rank, (_, at) in self._seen.items())
        suspicious = self._suspicious is not None and now - self._suspicious > _BEATS * self._interval
        allowed = _BEATS * self._interval if suspicious else self._timeout_s - 2 * self._interval
        return self._meeting.tell_of_lost(rank, _gone(f"rank {rank}")) if silent > allowed else None


def join_group(place: Place, timeout_s: float, on_lost: Callable[[str], None]) -> Liveness:
    """Join the other processes: in the store, then with gloo. See ``Liveness`` for the arguments.

    Raises:
        ConnectionError: the store or the other processes cannot be reached.
        PeerLost: another process failed before it joined, or did not come.
        ValueError: another one has another version.
    """
    liveness = None
    try:
        store = place.open(place.reached_s, serve=place.serves)
        Meeting(place, store).wait_for_all()
        liveness = Liveness(place, timeout_s, on_lost)
        place.use_its_interface()
        timeout = timedelta(seconds=_CONNECT_S)
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.num_processes, timeout=timeout)
    except PeerLost:
        raise
    except (dist.DistError, RuntimeError, OSError) as error:
        said = str(error).splitlines()[0]
        what = f"cannot join the group: {said}; check MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME and the network"
        if "EADDRINUSE" in str(error):
            what = "the port is in use; start with torchrun --standalone or another --master-port"
        if liveness is not None:
            liveness.tell(what)
        raise ConnectionError(what) from error
    return liveness


def _gone(who: str) -> str:
    return f"{who} is gone or does not answer; see its output; --resume goes on from the last checkpoint, if any"
