"""Workers as threads that take turns: the real store, exchange and wire, without processes.

A thread runs until it waits for another one; only then the next one runs. So tests are deterministic, and state that
threads share (the global random generator) is safe. A post office stands in for gloo and is as strict as gloo can be: a
message must have the expected length, is read from the sender's buffer only when the receiver waits for it, and the
receiver's buffer is full of noise until then.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from skerry.runtimes.distributed import wire
from skerry.runtimes.distributed.sharded import Sharded
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.runtime import Report

_PATIENCE_S = 60.0


class Abandoned(RuntimeError):
    """Another thread failed, or all threads wait."""


@dataclass(eq=False)
class Work:
    """What ``isend`` and ``irecv`` return."""

    wait: Callable[[], None]


@dataclass(eq=False)
class Hall:
    """Where threads meet, and the post office that stands in for ``torch.distributed`` in the wire."""

    num: int
    turn: threading.Condition = field(default_factory=threading.Condition)
    ranks: dict[int, int] = field(default_factory=dict)
    met: list[int] = field(default_factory=list)
    brought: dict[int, dict[int, Any]] = field(default_factory=dict)
    letters: dict[tuple[int, int], deque[list[Any]]] = field(default_factory=dict)
    sent: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    failed: BaseException | None = None

    def wait(self, ready: Callable[[], bool]) -> None:
        """Let other threads run until ``ready``."""
        self.turn.notify_all()
        if not self.turn.wait_for(lambda: ready() or self.failed is not None, _PATIENCE_S) or self.failed is not None:
            raise Abandoned("all threads wait") from self.failed

    def meet(self, rank: int, thing: Any) -> list[Any]:
        """Bring a thing; return the things of all, by rank."""
        time = self.met[rank]
        self.met[rank] += 1
        self.brought.setdefault(time, {})[rank] = thing
        self.wait(lambda: len(self.brought[time]) == self.num)
        return [self.brought[time][r] for r in range(self.num)]

    def isend(self, buffer: Tensor, peer: int, group: None = None) -> Work:
        """Send; the buffer must not change before ``wait`` returns."""
        road = (self.ranks[threading.get_ident()], peer)
        letter = [buffer, False]
        self.letters.setdefault(road, deque()).append(letter)
        self.sent.setdefault(road, []).append(len(buffer))
        return Work(lambda: self.wait(lambda: letter[1]))

    def irecv(self, buffer: Tensor, peer: int, group: None = None) -> Work:
        """Receive; the buffer is valid once ``wait`` returns."""
        letters = self.letters.setdefault((peer, self.ranks[threading.get_ident()]), deque())
        buffer.fill_(0xA5)

        def wait() -> None:
            self.wait(lambda: len(letters) > 0)
            letter = letters.popleft()
            assert len(letter[0]) == len(buffer), "gloo would end the process group"
            buffer.copy_(letter[0])
            letter[1] = True

        return Work(wait)


@dataclass(eq=False)
class Member:
    """The runtime of one worker, in a thread."""

    hall: Hall
    rank: int
    num_processes: int
    wire_format: WireFormat
    chunk: int
    sums: bool = False
    round: int = 0
    goes_on: bool = False
    change: None = None
    ending: None = None

    def mine(self, num_workers: int) -> list[int]:
        assert num_workers == self.num_processes
        return [self.rank]

    def at(self, round: int, stage: str) -> None:
        self.round = round

    def resume(self, *args: Any) -> None:
        pass

    def went_on(self, state: Any) -> None:
        pass

    def keep(self, *args: Any) -> Sharded:
        self.wire = Wire(self.num_processes, nullcontext, self.chunk * 4 * max(1, self.num_processes - 1))
        assert self.wire.chunk == self.chunk
        return Sharded(self, self.wire, *args, wire_format=self.wire_format)

    def reports(self, mine: Report, agreement: Mapping[str, str]) -> list[Report]:
        self.agree(agreement)
        return self.hall.meet(self.rank, mine)

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        called: list[None] = []

        def wait() -> None:
            if not called:
                called.append(None)
                call(self.wire)

        return wait  # as late as possible

    def agree(self, values: Mapping[str, str]) -> None:
        first, *others = self.hall.meet(self.rank, dict(values))
        for name in first:
            if any(other.get(name) != first[name] for other in others):
                raise ValueError(f"{name} differs")

    def gather(self, text: str) -> list[str]:
        return self.hall.meet(self.rank, text)

    def total(self, tensor: Tensor) -> Tensor:
        return reduce(torch.add, self.hall.meet(self.rank, tensor.detach().clone()))  # not sum: 0.0 + -0.0 is 0.0

    def sum_in_place(self) -> Callable[[Tensor], None] | None:
        return (lambda tensor: tensor.copy_(self.total(tensor))) if self.sums else None


def together(
    num: int,
    work: Callable[[Member], Any],
    *,
    wire_format: WireFormat = "exact",
    chunk: int = 4096,
    sums: bool = False,
) -> list[Any]:
    """Run ``work(member)`` for ``num`` members; return their results, by rank, or raise what one of them raises."""
    hall = Hall(num, met=[0] * num)
    results: list[Any] = [None] * num

    def run(rank: int) -> None:
        with hall.turn:
            hall.ranks[threading.get_ident()] = rank
            try:
                results[rank] = work(Member(hall, rank, num, wire_format, chunk, sums))
            except BaseException as error:
                hall.failed = hall.failed or error
            hall.turn.notify_all()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(num)]
    with mock.patch.object(wire, "dist", hall):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if hall.failed is not None:
        raise hall.failed
    assert not any(hall.letters.values()), "sent, but never received"
    return results
