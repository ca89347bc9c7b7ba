"""Liveness: heartbeats between processes, so that a lost one is named and no process hangs.

A process in long local steps is slow; one that is stopped or cut off is lost. A timeout on the exchange alone cannot
tell them apart. So a thread of each process increments a counter in the group's store, twice a second, and reads the
counters of the others. The first process that finds a counter standing still writes down whose it is, and all end with
that rank in their message. When a connection breaks (at once if a process is killed), the counters tell who was lost.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

_LOST = "lost"
_NOBODY = "-"
JOIN_S = 300.0
"""Seconds that processes wait for each other at the start."""
_BEATS = 4
"""If a connection is broken, a process that misses so many heartbeats is lost."""


class Liveness:
    """The heartbeat thread of a process.

    Args:
        address: host and port of the group's store (a ``TCPStore``), to which it opens a connection of its own.
        rank: of this process.
        num_processes: in the group.
        timeout_s: a process without a heartbeat for so many seconds is lost.
        on_lost: called with one line, in the thread; it should end the process.
        attempt: distinguishes the group from earlier ones that used the same store (a restart).
    """

    def __init__(
        self,
        address: tuple[str, int],
        rank: int,
        num_processes: int,
        timeout_s: float,
        on_lost: Callable[[str], None],
        attempt: str = "0",
    ) -> None:
        self._rank, self._timeout_s, self._on_lost = rank, timeout_s, on_lost
        self._interval = min(0.5, timeout_s / 10)
        timeout = timedelta(seconds=max(1.0, timeout_s * 0.8))
        store = dist.TCPStore(*address, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        self._store = dist.PrefixStore(f"skerry/{attempt}", store)  # type: ignore[attr-defined]
        self._keys = [f"alive/{r}" for r in range(num_processes)]
        self._where = "round 0, start"
        self._seen: dict[int, tuple[str, float]] = {}
        self._suspicious: float | None = None
        self._signals: socket.socket | None = None
        self._before: Callable[[], None] = lambda: None  # restores the handler of SIGTERM
        self._beaten = time.monotonic()
        self._ended = threading.Event()
        self._store.set(self._keys[rank], "0")
        self._store.compare_set(_LOST, "", _NOBODY)
        self._store.wait(self._keys, timedelta(seconds=JOIN_S))
        self._thread = threading.Thread(target=self._run, name="skerry-liveness", daemon=True)
        self._thread.start()

    def at(self, where: str) -> None:
        """Note where this process is: round and stage."""
        self._where = where

    def stop(self) -> None:
        """End the thread: the work is done, and others that end are not lost."""
        self._ended.set()
        self._before()
        self._store.set(self._keys[self._rank], "done")
        self._thread.join()

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
                lost = self._beat(count)
            except RuntimeError:
                lost = "0's machine, which keeps the group's store,"
            if lost is not None and not self._ended.is_set():
                self._on_lost(self._line(lost))
                return
            if self._suspicious and time.monotonic() - self._suspicious > 3 * _BEATS * self._interval:
                self._on_lost(f"rank {self._rank}, {self._where}: terminated, or cut off from another process")
                return

    def _beat(self, count: int) -> str | None:
        """Increment the counter, read those of the others, and return who is lost, None if no process is."""
        self._store.set(self._keys[self._rank], f"{count}")
        *signs, lost = (word.decode() for word in self._store.multi_get([*self._keys, _LOST]))
        now = time.monotonic()
        if now - self._beaten > _BEATS * self._interval:  # this process was stopped itself
            self._seen = {rank: (sign, now) for rank, (sign, _) in self._seen.items()}
        self._beaten = now
        for rank, sign in enumerate(signs):
            if rank == self._rank or sign == "done" or sign != self._seen.get(rank, ("", 0.0))[0]:
                self._seen[rank] = (sign, now)
        if lost != _NOBODY:
            return lost
        silent, rank = max((now - at, rank) for rank, (_, at) in self._seen.items())
        suspicious = self._suspicious is not None and now - self._suspicious > _BEATS * self._interval
        allowed = _BEATS * self._interval if suspicious else self._timeout_s - 2 * self._interval
        return self._agree(rank) if silent > allowed else None

    def _agree(self, rank: int) -> str:
        """Write down who is lost, unless another process already has; return what is written."""
        written: str = self._store.compare_set(_LOST, _NOBODY, f"{rank}").decode()
        return written

    def _line(self, lost: str) -> str:
        return (
            f"rank {self._rank}, {self._where}: rank {lost} is gone or does not answer; see its output; "
            "--resume continues from the last checkpoint, if there is one"
        )
