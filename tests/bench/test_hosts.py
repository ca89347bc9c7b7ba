"""bench/distributed/hosts.py: torchrun on hosts, counters, the rate, the memory limit, and that nothing is left over.

Bytes are checked against those of a ring all-reduce, the rate against the least time that the bytes need.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from skerry.experiments.cli import call

PATH = Path(__file__).parents[2] / "bench" / "distributed" / "hosts.py"
_spec = importlib.util.spec_from_file_location("bench_hosts", PATH)
assert _spec is not None
assert _spec.loader is not None
bench = importlib.util.module_from_spec(_spec)
sys.modules["bench_hosts"] = bench  # dataclasses look their module up
_spec.loader.exec_module(bench)

_problem = bench.why_not()
pytestmark = pytest.mark.skipif(_problem is not None, reason=f"no hosts here: {_problem}")

ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.full((250_000,), float(dist.get_rank() + 1))
dist.all_reduce(x)
assert x.eq(6).all()
print("rank", dist.get_rank())
dist.destroy_process_group()
"""

RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 5000))
connection, _ = server.accept()
started, num_bytes = time.monotonic(), 0
while part := connection.recv(1 << 16):
    num_bytes += len(part)
print(num_bytes, time.monotonic() - started)
"""

SEND = """
import socket, sys, time
for _ in range(200):
    try:
        connection = socket.create_connection((sys.argv[1], 5000))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
connection.sendall(bytes(int(sys.argv[2])))
connection.close()
"""

OWNER = """
import importlib.util, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests were started by nohup
signal.signal(signal.SIGINT, signal.default_int_handler)  # or in the background
spec = importlib.util.spec_from_file_location("bench_hosts", sys.argv[1])
bench = sys.modules["bench_hosts"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
hosts = bench.Hosts(2).__enter__()  # without "with", nothing but signals and the exit can remove them
print(hosts.popen(0, ["sleep", "1000"]).pid, flush=True)
signal.pause()
"""


def owned_by(pid: int) -> list[str]:
    """The namespaces and cgroups whose names carry this pid."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {line.split()[0] for line in listed} | set(bench.names())
    return sorted(name for name in found if (match := bench.NAME.fullmatch(name)) and int(match[1]) == pid)


def end_owner(sent: signal.Signals) -> tuple[int, int, int]:
    """Send a signal to a process that has hosts; return its pid, a pid in a host, and its exit code."""
    command = [sys.executable, "-c", OWNER, str(PATH)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdout is not None
        sleeper = int(owner.stdout.readline())
        assert len(owned_by(owner.pid)) == 3
        owner.send_signal(sent)
        try:
            return owner.pid, sleeper, owner.wait(20)
        finally:
            owner.kill()


@pytest.mark.slow
def test_three_hosts_train_for_two_rounds(tmp_path: Path) -> None:
    """The model equals the serial runtime's; the run's files are complete."""
    settings = ["train", "digits-mlp", "--workers", "3", "--rounds", "2", "--set", "threads=1", "--out"]
    with bench.Hosts(3, rate="1gbit") as hosts:
        command = ["-m", "skerry", *settings, str(tmp_path / "hosts")]
        outcome = hosts.torchrun(command, out=tmp_path / "logs", timeout_s=400)
    assert outcome.codes == [0, 0, 0], outcome.logs[0].read_text()
    assert call([*settings, str(tmp_path / "serial")]) == (0, "")
    found = [load_file(tmp_path / runtime / "model.safetensors") for runtime in ("hosts", "serial")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    parts = sorted(p.name for p in tmp_path.glob("hosts/checkpoint/*/*.safetensors"))
    assert parts == [f"{rank}-of-3.safetensors" for rank in range(3)]


@pytest.mark.slow
def test_torchrun_in_three_hosts(tmp_path: Path) -> None:
    script = tmp_path / "all_reduce.py"
    script.write_text(ALL_REDUCE)
    with bench.Hosts(3, rate="1gbit") as hosts:
        outcome = hosts.torchrun([str(script)], out=tmp_path / "logs", timeout_s=400)
        said = [log.read_text() for log in outcome.logs]
        assert outcome.codes == [0, 0, 0], said
        assert all(f"rank {k}" in text for k, text in enumerate(said))  # host k has rank k
        ring = 2 * (3 - 1) / 3 * 1e6
        for num_bytes in (*outcome.sent_bytes, *outcome.received_bytes):
            assert ring <= num_bytes <= 1.1 * ring + 100e3
    assert owned_by(os.getpid()) == []  # also after a success


def test_a_job_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(1000)")
    with bench.Hosts(1) as hosts:
        with pytest.raises(TimeoutError, match=r"host 0\b.*\b0\.3\b.*host-0\.log"):
            hosts.torchrun([str(script)], out=tmp_path, timeout_s=0.3)
        assert hosts.pids(0) == []


def test_the_rate_holds() -> None:
    num_bytes = 5_000_000
    with bench.Hosts(2, rate="20mbit") as hosts:
        receiver = hosts.popen(1, [sys.executable, "-c", RECEIVE, hosts.addresses[1]], log=subprocess.PIPE)
        assert receiver.pid in hosts.pids(1)
        sent = hosts.run(0, [sys.executable, "-c", SEND, hosts.addresses[1], str(num_bytes)], timeout_s=60)
        assert sent.returncode == 0, sent.stderr
        received, seconds = receiver.communicate(timeout=60)[0].split()
        assert int(received) == num_bytes
        assert float(seconds) >= 0.95 * (num_bytes - 2**16) * 8 / 20e6  # the bucket's burst is sent at once
        assert hosts.sent_bytes()[0] >= num_bytes
        assert hosts.received_bytes()[1] >= num_bytes


@pytest.mark.parametrize("rate", ["100mb", "fast", "0mbit", "-1mbit"])
def test_a_rate_that_is_none(rate: str) -> None:
    with pytest.raises(ValueError, match=rf"'{rate}'.*\bmbit\b"):
        bench.Hosts(2, rate=rate)


def test_hosts_see_each_other_and_nothing_else() -> None:
    with bench.Hosts(1) as hosts, bench.Hosts(1) as others:  # two at once, in one process
        assert set(hosts.names).isdisjoint(others.names)
        links = hosts.run(0, ["ip", "-o", "link"]).stdout.splitlines()
        assert [line.split()[1].split("@")[0].rstrip(":") for line in links] == ["lo", "eth0"]
        assert "default" not in hosts.run(0, ["ip", "route"]).stdout
        assert hosts.run(0, ["sh", "-c", "exit 3"]).returncode == 3
    assert owned_by(os.getpid()) == []


def test_the_memory_limit_kills() -> None:
    if problem := bench.why_not(memory=True):
        pytest.skip(problem)
    allocate = [sys.executable, "-c", "import sys; print(len(b'x' * int(sys.argv[1])))"]
    limit = 100 * 2**20
    with bench.Hosts(2, memory=limit) as hosts:
        assert hosts.run(0, [*allocate, str(limit // 2)]).returncode == 0
        assert hosts.run(1, [*allocate, str(2 * limit)]).returncode == -signal.SIGKILL
        assert hosts.out_of_memory() == [0, 1]
        small, large = hosts.peak_memory()
        assert small is None or limit // 2 < small < limit
        assert large is None or 0.9 * limit < large <= limit


def test_what_a_killed_owner_leaves_is_removed() -> None:
    pid, sleeper, _ = end_owner(signal.SIGKILL)
    assert len(owned_by(pid)) == 3  # or this tests nothing
    assert bench.alive(sleeper)
    with bench.Hosts(1):
        assert owned_by(pid) == []
        assert not bench.alive(sleeper)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_owner_that_is_told_to_stop_removes_its_hosts(sent: signal.Signals) -> None:
    pid, sleeper, code = end_owner(sent)
    assert code in (128 + sent, -sent)
    assert owned_by(pid) == []
    assert not bench.alive(sleeper)
