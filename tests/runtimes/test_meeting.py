"""The store in which processes meet; threads stand in for them. Real ones are in ``test_failures_are_told.py``."""

import threading

import pytest
import torch.distributed as dist

from skerry.runtimes import PeerLost
from skerry.runtimes.distributed import meeting
from skerry.runtimes.distributed.meeting import Meeting, Place


def meet(store, rank, num):
    return Meeting(Place(host="", port=0, rank=rank, num_processes=num), store)


def in_threads(num, work, store=None):
    """Run ``work(meeting, rank)`` for each rank; return what each returned or raised."""
    store, ended = store or dist.HashStore(), [None] * num

    def run(rank):
        try:
            ended[rank] = work(meet(store, rank, num), rank)
        except Exception as error:
            ended[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


@pytest.mark.parametrize("failing", [0, 2])
def test_one_that_fails_before_it_joins_is_known_to_all_when_it_leaves(failing):
    def work(at, rank):
        return at.tell("no data", 60) if rank == failing else at.wait_for_all()

    ended = in_threads(3, work)
    assert ended.pop(failing) is None
    assert all(isinstance(error, PeerLost) and f"rank {failing} ended: no data" in str(error) for error in ended)


def test_two_that_fail_do_not_wait_for_each_other_and_the_first_word_counts():
    store = dist.HashStore()
    assert in_threads(2, lambda at, rank: at.tell(("no data", "no memory")[rank], 60), store) == [None, None]
    words = [meet(store, rank, 2).beat("1")[1] for rank in range(2)]
    assert words[0] == words[1]
    assert words[0] in ("rank 0 ended: no data", "rank 1 ended: no memory")


def test_other_versions_are_named_in_all(monkeypatch):
    names = iter(["skerry 1, torch 2.9", "skerry 1, torch 2.10"])
    monkeypatch.setattr(meeting, "_versions", lambda: next(names))
    for rank, error in enumerate(in_threads(2, lambda at, rank: at.wait_for_all())):
        assert isinstance(error, ValueError)
        assert f"rank {rank}, start: skerry 1, torch 2." in str(error)
        assert f"on rank {1 - rank}" in str(error)


def test_one_that_does_not_come_is_named(monkeypatch, capsys):
    monkeypatch.setattr(meeting, "JOIN_S", 0.2)
    monkeypatch.setattr(meeting, "_QUIET_S", 0.0)
    monkeypatch.setattr(meeting, "_TELL_S", 0.0)
    first, _ = in_threads(2, lambda at, rank: None if rank else at.wait_for_all())
    assert "rank 1 did not join" in str(first)
    assert capsys.readouterr().err.count("rank 0 waits for rank 1") == 1
