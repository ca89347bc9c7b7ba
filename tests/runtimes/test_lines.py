"""Lines between members: who has ended is seen at once, who lives never."""

import contextlib
import os
import resource
import socket
import time

import pytest

from skerry.runtimes.elastic.lines import Lines


@pytest.fixture
def two():
    lines = Lines("127.0.0.1"), Lines("127.0.0.1")
    lines[0].addresses = {"other": lines[1].address}
    yield lines
    for each in lines:
        each.close()


def _within(lines, calls=20):
    """Return who ends within some calls; each takes no longer than it waits."""
    return [uid for _ in range(calls) for uid in lines.wait(0.02)]


def test_who_ends_is_seen_once(two):
    here, other = two
    assert not here.wait(0.02) + other.wait(0.02)
    other.close()
    assert _within(here) == ["other"]
    here.addresses = {}
    assert _within(here, 2) == []


def test_who_has_ended_before_is_seen(two):
    here, other = two
    other.close()
    assert _within(here) == ["other"]


def test_who_lives_is_not_missed_if_a_line_closes(two):
    here, other = two
    for _ in range(5):
        here.wait(0.02)
        other.wait(0.02)
        for key in list(other._selector.get_map().values()):
            if key.fileobj is not other._server:
                other._close(key.fileobj)
    assert _within(here) == []


def test_another_thread_ends_a_wait(two):
    here, _ = two
    here.wait(0.02)
    here.wake()
    began = time.monotonic()
    here.wait(60.0)
    assert time.monotonic() - began < 30.0


def test_strangers_leave_nothing_open(two):
    here, _ = two
    here.addresses = {}
    here.wait(0.02)
    before = len(here._selector.get_map())
    host, _, port = here.address.rpartition(":")
    for _ in range(20):
        socket.create_connection((host, int(port))).close()
    _within(here, 50)
    assert len(here._selector.get_map()) == before


@contextlib.contextmanager
def _no_more_files():
    """Leave this process no file that it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    used = []
    try:
        with contextlib.suppress(OSError):
            while True:
                used.append(os.dup(0))
        yield
    finally:
        for file in used:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_files_to_open_nobody_is_missed_and_the_next_call_tries_again(two):
    here, other = two
    with _no_more_files():
        assert here.wait(0.02) == []
    here.wait(0.02)
    other.close()
    assert _within(here) == ["other"]


def test_a_connection_that_cannot_be_accepted_does_not_end_each_wait_at_once(two):
    here, _ = two
    here.addresses = {}
    host, _, port = here.address.rpartition(":")
    with socket.create_connection((host, int(port))), _no_more_files():
        began = time.monotonic()
        for _ in range(5):
            here.wait(0.02)
        assert time.monotonic() - began > 0.09
