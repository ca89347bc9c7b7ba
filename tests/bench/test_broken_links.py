"""bench/distributed/broken_links.py: what comes over a link that is down, works one way, or changes bytes."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

SENT = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def links(load_script):
    bench = load_script("distributed/broken_links.py")
    if problem := load_script("distributed/hosts.py").why_not():
        pytest.skip(f"no hosts here: {problem}")
    with bench.BreakableHosts(2) as hosts:
        hosts.relayed(1)
        hosts.enter = bench.enter
        yield hosts


@pytest.fixture
def ends(links):
    """A connection from host 1 to host 0: the socket of each."""

    def on(k, open_):
        links.enter(links.names[k])
        return open_()

    with ThreadPoolExecutor(1) as here, ThreadPoolExecutor(1) as there:
        server = here.submit(on, 0, lambda: socket.create_server((links.addresses[0], 0))).result()
        address = server.getsockname()
        client = there.submit(on, 1, lambda: socket.create_connection(address, 10)).result()
        accepted, _ = server.accept()
        with server, client, accepted:
            accepted.settimeout(10)
            yield accepted, client


def _received(end, num):
    got = b""
    while len(got) < num and (part := end.recv(num - len(got))):
        got += part
    return got


@pytest.mark.parametrize("how", ["spoil", "forge"])
def test_changed_bytes_arrive_only_with_a_right_sum(links, ends, how):
    here, there = ends
    before, whole = links.num_changed(1), []
    links.break_(1, how)
    for _ in range(12):
        there.sendall(SENT)
        whole.append(_received(here, len(SENT)) == SENT)
    links.mend(1, how)
    assert links.num_changed(1) > before
    assert all(whole) == (how == "spoil")
    there.sendall(SENT)
    assert _received(here, len(SENT)) == SENT


@pytest.mark.parametrize("how", ["link", "cut"])
def test_a_broken_link_carries_nothing_until_it_is_mended(links, ends, how):
    here, there = ends
    links.break_(1, how)
    there.sendall(b"up")
    here.settimeout(0.2)
    with pytest.raises(TimeoutError):
        here.recv(1)
    here.settimeout(10)
    here.sendall(b"down")
    there.settimeout(0.2)
    if how == "cut":
        assert _received(there, 4) == b"down"
    else:
        with pytest.raises(TimeoutError):
            there.recv(1)
    links.mend(1, how)
    assert _received(here, 2) == b"up"


def test_nothing_is_left(load_script):
    bench = load_script("distributed/broken_links.py")
    threads = threading.active_count()
    with bench.BreakableHosts(1) as hosts:
        hosts.relayed(0)
    assert threading.active_count() == threads
    assert not {*hosts.names, hosts.bridge} & {*load_script("distributed/hosts.py").names()}
