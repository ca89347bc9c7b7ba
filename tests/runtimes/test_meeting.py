"""The store in which processes meet; threads stand in for them. Real ones are in ``test_failures_are_told.py``."""

import os
import socket
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch.distributed as dist

from skerry.runtimes import PeerLost
from skerry.runtimes.distributed import meeting
from skerry.runtimes.distributed.meeting import Meeting, Place


def place(rank, num, host=""):
    return Place(host=host, port=9, rank=rank, num_processes=num)


def meet(store, rank, num):
    return Meeting(place(rank, num), store)


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


def test_two_that_fail_do_not_wait_for_each_other_and_the_first_message_counts():
    store = dist.HashStore()
    assert in_threads(2, lambda at, rank: at.tell(("no data", "no memory")[rank], 60), store) == [None, None]
    messages = [meet(store, rank, 2).beat("1")[-1] for rank in range(2)]
    assert messages[0] == messages[1]
    assert messages[0] in ("rank 0 ended: no data", "rank 1 ended: no memory")


def test_other_versions_are_named_in_all(monkeypatch):
    names = iter(["skerry 1, torch 2.9", "skerry 1, torch 2.10"])
    monkeypatch.setattr(meeting, "versions", lambda: next(names))
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


def test_the_first_process_leaves_last():
    order = []

    def work(at, rank):
        at.leave(60) if rank == 0 else (time.sleep(0.1), order.append(rank), at.leave())
        order.append(("left", rank))

    in_threads(3, work)
    assert order.index(("left", 0)) > max(order.index(1), order.index(2))


@pytest.mark.skipif(sys.platform != "linux", reason="gloo's interface is chosen on Linux only")
def test_a_name_that_is_loopback_is_refused_on_several_hosts_only(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(meeting.os, "environ", dict(os.environ))
    connect = socket.socket.connect

    class Socket(socket.socket):
        def connect(self, address):
            connect(self, ("127.0.1.1" if address[0] == "this-host" else address[0], address[1]))

    monkeypatch.setattr(meeting.socket, "socket", Socket)
    for host, local, refused in [("this-host", "1", True), ("this-host", "2", False), ("127.0.0.1", "1", False)]:
        meeting.os.environ["LOCAL_WORLD_SIZE"] = local
        meeting.os.environ.pop("GLOO_SOCKET_IFNAME", None)
        with pytest.raises(ConnectionError, match=r"this-host is loopback") if refused else nullcontext():
            place(0, 2, host).use_its_interface()
