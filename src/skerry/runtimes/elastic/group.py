"""A gloo group that can be left at any time, though gloo waits in calls for who is stopped or cut off.

What may wait for others runs in a thread. When somebody is lost the thread is left alone, and ``close`` ends it: a
receive that is too late lets gloo close all connections of the group, and everything that waits in it fails.
"""

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE_S = 600.0
"""Seconds that members wait for a slow one in the middle of an exchange or an evaluation."""
_POLL_S, _LAST_S, _END_S = 0.005, 0.3, 5.0
_NOBODY_SENDS = 2  # the tag of messages that never come

T = TypeVar("T")


class Group:
    """The gloo group of one generation; its calls raise RuntimeError soon after a member is lost.

    Args:
        store: in which the members of the group find each other, and nobody else.
        rank: of this member.
        num_processes: members.
        broken: why the calls cannot end, empty if they can.
    """

    def __init__(self, store: Any, rank: int, num_processes: int, broken: Callable[[], str]) -> None:
        self._rank, self._num, self._broken = rank, num_processes, broken
        self._main, self._threads = threading.get_ident(), set[threading.Thread]()
        timeout = timedelta(seconds=PATIENCE_S)
        # The constructor ignores timeouts where only one way of a link works.
        self._gloo: Any = self.watched(lambda: dist.ProcessGroupGloo(store, rank, num_processes, timeout))

    def watched(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, from a thread; RuntimeError soon after a member is lost."""
        if threading.get_ident() != self._main:
            return call()
        results, errors = list[T](), list[BaseException]()

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:
                if thread not in self._threads:  # else it would keep itself, by its traceback, and what it waited for
                    errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            if thread.is_alive() and (why := self._broken()):
                thread.join(_LAST_S)  # who is lost may have done its part before
                if thread.is_alive():
                    self._threads.add(thread)
                    raise RuntimeError(why)
        if errors:
            raise errors.pop()
        return results[0]

    def all_gather(self, row: Tensor) -> list[Tensor]:
        """Return the rows of all members."""
        rows = [torch.empty_like(row) for _ in range(self._num)]
        self.watched(lambda: self._gloo.allgather([rows], [row]).wait())
        return rows

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all members, on the CPU."""
        result = tensor.detach().cpu().clone()
        self.watched(lambda: self._gloo.allreduce([result]).wait())
        return result

    def send(self, buffer: Tensor, peer: int, tag: int = 0) -> Any:
        """Start to send to ``peer``."""
        return self._gloo.send([buffer], peer, tag)

    def receive(self, buffer: Tensor, peer: int, tag: int = 0) -> Any:
        """Start to receive from ``peer``."""
        return self._gloo.recv([buffer], peer, tag)

    def close(self) -> None:
        """Close all connections, and end the threads that wait in them; may be called twice."""
        if self._gloo is None:
            return
        for peer in {*range(self._num)} - {self._rank}:
            with contextlib.suppress(RuntimeError):
                self.receive(torch.empty(1), peer, _NOBODY_SENDS).wait(timedelta(milliseconds=1))
        for thread in self._threads:
            thread.join(_END_S)
        self._gloo = None
