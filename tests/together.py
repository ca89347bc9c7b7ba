"""Workers as threads that take turns: the real store, exchange and wire, without processes.

A thread runs until it waits for another one, and only then may the next go on. So a test is as repeatable as without
threads, and what threads share (the global random state) is safe. In the place of gloo is a post office that is as
strict as gloo may be: a message has the length that is expected, is read out of the sender's buffer only when the
receiver waits for it, and the receiver's buffer is full of noise until then.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
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
    """Another thread failed, or nobody can go on."""


@dataclass(eq=False)
class Work:
    """What ``isend`` and ``irecv`` return."""

    wait: Callable[[], None]


@dataclass(eq=False)
class Hall:
    """Where the threads meet, and the post office: it stands in for ``torch.distributed`` in the wire."""

    num: int
    turn: threading.Condition = field(default_factory=threading.Condition)
    ranks: dict[int, int] = field(default_factory=dict)
    met: list[int] = field(default_factory=list)
    brought: dict[int, dict[int, Any]] = field(default_factory=dict)
    letters: dict[tuple[int, int], deque[list[Any]]] = field(default_factory=dict)
    sent: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    failed: BaseException | None = None

    def wait(self, ready: Callable[[], bool]) -> None:
        """Let others run until ``ready``."""
        self.turn.notify_all()
        if not self.turn.wait_for(lambda: ready() or self.failed is not None, _PATIENCE_S) or self.failed is not None:
            raise Abandoned("nobody came") from self.failed

    def meet(self, rank: int, thing: Any) -> list[Any]:
        """Bring a thing and return everybody's, by rank."""
        time = self.met[rank]
        self.met[rank] += 1
        self.brought.setdefault(time, {})[rank] = thing
        self.wait(lambda: len(self.brought[time]) == self.num)
        return [self.brought[time][r] for r in range(self.num)]

    def isend(self, buffer: Tensor, peer: int, group: None = None) -> Work:
        """Send; the buffer may be changed only when this is waited for."""
        road = (self.ranks[threading.get_ident()], peer)
        letter = [buffer, False]
        self.letters.setdefault(road, deque()).append(letter)
        self.sent.setdefault(road, []).append(len(buffer))
        return Work(lambda: self.wait(lambda: letter[1]))

    def irecv(self, buffer: Tensor, peer: int, group: None = None) -> Work:
        """Receive; the buffer is right only when this has been waited for."""
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
    """The runtime of one worker, which is a thread."""

    hall: Hall
    rank: int
    num_processes: int
    wire_format: WireFormat
    chunk: int
    round: int = 0

    def mine(self, num_workers: int) -> list[int]:
        assert num_workers == self.num_processes
        return [self.rank]

    def at(self, round: int, stage: str) -> None:
        self.round = round

    def keep(self, *args: Any) -> Sharded:
        self.wire = Wire(self.num_processes, nullcontext, self.chunk * 4 * max(1, self.num_processes - 1))
        assert self.wire.chunk == self.chunk
        return Sharded(self, self.wire, *args, wire_format=self.wire_format)

    def reports(self, mine: Report, agreement: int) -> list[Report]:
        self.agree(agreement, "what is dealt out")
        return self.hall.meet(self.rank, mine)

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        called: list[None] = []

        def wait() -> None:
            if not called:
                called.append(None)
                call(self.wire)

        return wait  # as late as can be

    def agree(self, number: int, what: str) -> None:
        if len(set(self.hall.meet(self.rank, number))) > 1:
            raise ValueError(f"{what} differs")

    def total(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.hall.meet(self.rank, tensor.detach().clone())).sum(0).to(tensor.dtype)


def together(
    num: int, work: Callable[[Member], Any], *, wire_format: WireFormat = "exact", chunk: int = 4096
) -> list[Any]:
    """Run ``work(member)`` for ``num`` members and return what they return, by rank; raise what one of them raises."""
    hall = Hall(num, met=[0] * num)
    results: list[Any] = [None] * num

    def run(rank: int) -> None:
        with hall.turn:
            hall.ranks[threading.get_ident()] = rank
            try:
                results[rank] = work(Member(hall, rank, num, wire_format, chunk))
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
