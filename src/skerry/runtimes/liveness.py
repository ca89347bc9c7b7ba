"""Liveness: processes tell each other that they are there, so that a lost one is named and nobody hangs.

A process in long local steps is slow, one that is stopped or cut off is lost; a timeout on the exchange alone cannot
tell them apart. So a thread of each process counts up under its name in the group's store, twice a second, and reads
the others' counts. Whoever
first finds a count that stands still writes down whose, and all end with that name. When a connection breaks,
which happens at once where a process is killed, the same counts tell whose fault it was.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

_LOST = "skerry/lost"
_NOBODY = "-"
_JOIN_S = 300.0


class Liveness:
    """The thread, and what it knows.

    Args:
        address: host and port of the group's store (a ``TCPStore``), of which it opens a client of its own.
        rank: of this process.
        num_processes: of all.
        timeout_s: after so many seconds without a sign a process is lost.
        on_lost: called with one line, in the thread; it should end the process.
    """

    def __init__(
        self,
        address: tuple[str, int],
        rank: int,
        num_processes: int,
        timeout_s: float,
        on_lost: Callable[[str], None],
    ) -> None:
        self._rank, self._num, self._timeout_s, self._on_lost = rank, num_processes, timeout_s, on_lost
        self._interval = min(0.5, timeout_s / 10)
        timeout = timedelta(seconds=max(1.0, timeout_s * 0.8))
        self._store = dist.TCPStore(*address, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        self._keys = [f"skerry/alive/{r}" for r in range(num_processes)]
        self._where = "round 0, start"
        self._seen: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self._store.set(self._keys[rank], "0")
        self._store.compare_set(_LOST, "", _NOBODY)
        self._store.wait(self._keys, timedelta(seconds=_JOIN_S))
        self._thread = threading.Thread(target=self._run, name="skerry-liveness", daemon=True)
        self._thread.start()

    def at(self, where: str) -> None:
        """Note where this process is: round and stage."""
        self._where = where

    def stop(self) -> None:
        """End the thread: the work is done, and others that end are not lost."""
        self._ended.set()
        self._store.set(self._keys[self._rank], "done")
        self._thread.join()

    def culprit(self) -> str:
        """After a broken connection: wait until it is clear who is lost, and return one line."""
        since = time.monotonic()
        while time.monotonic() - since < self._timeout_s:
            time.sleep(self._interval)
            # The thread goes on seeing the others; whoever is not seen for three beats is gone.
            silent = [r for r, (_, at) in self._seen.items() if time.monotonic() - at > 3 * self._interval]
            if silent and time.monotonic() - since > 3 * self._interval:
                return self._line(self._agree(min(silent)))
        return f"rank {self._rank}, {self._where}: lost the connection to another process"

    def _run(self) -> None:
        count = 0
        while not self._ended.wait(self._interval):
            count += 1
            try:
                lost = self._beat(count)
            except RuntimeError:
                if not self._ended.is_set():
                    self._on_lost(
                        f"rank {self._rank}, {self._where}: the group's store (first machine) does not answer"
                    )
                return
            if lost is not None and not self._ended.is_set():
                self._on_lost(self._line(lost))
                return

    def _beat(self, count: int) -> str | None:
        """Give a sign, look at the others', and return who is lost, if somebody is."""
        self._store.set(self._keys[self._rank], f"{count}")
        *signs, lost = (word.decode() for word in self._store.multi_get([*self._keys, _LOST]))
        now = time.monotonic()
        for rank, sign in enumerate(signs):
            if rank == self._rank or sign == "done" or sign != self._seen.get(rank, ("", 0.0))[0]:
                self._seen[rank] = (sign, now)
            elif now - self._seen[rank][1] > self._timeout_s - 2 * self._interval:
                return self._agree(rank)
        return None if lost == _NOBODY else lost

    def _agree(self, rank: int) -> str:
        """Write down who is lost, unless somebody else has: the first word counts."""
        word: str = self._store.compare_set(_LOST, _NOBODY, f"{rank}").decode()
        return word

    def _line(self, lost: str) -> str:
        return (
            f"rank {self._rank}, {self._where}: rank {lost} is gone or does not answer; go on from the last checkpoint "
            "with --resume"
        )
