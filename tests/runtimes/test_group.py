"""A gloo group that is left while others are waited for: its threads end, and its connections close."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from skerry.runtimes.elastic.group import Group


def _open():
    """Return how many files, and how many threads, this process has."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def _lost_in(call, store, name):
    """Make a group of two, of which one waits in ``call`` for the other until that one counts as lost."""
    why, prefixed = [""], dist.PrefixStore(name, store)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(Group, prefixed, 0, 2, lambda: why[0])
        other = pool.submit(Group, prefixed, 1, 2, lambda: "")
        here, other = waiting.result(30), other.result(30)
    here._main = threading.get_ident()
    why[0] = "lost"
    with pytest.raises(RuntimeError, match="lost"):
        call(here)
    here.close()
    other.close()


CALLS = {
    "all_gather": lambda group: group.all_gather(torch.ones(2)),
    "total": lambda group: group.total(torch.ones(2)),
    "receive": lambda group: group.watched(group.receive(torch.ones(2), 1).wait),
    "send": lambda group: group.watched(group.send(torch.ones(2**24), 1).wait),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_group_that_is_left_leaves_nothing_open(name):
    store = dist.HashStore()
    _lost_in(CALLS[name], store, "first")  # what is made once
    before = _open()
    for k in range(5):
        _lost_in(CALLS[name], store, f"{k}")
    until = time.monotonic() + 30  # a thread that has ended may be listed for a moment
    while _open() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert _open() == before
