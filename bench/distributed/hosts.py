"""n hosts on one machine, each with a slow link and little memory, and torchrun on all of them (Linux, root).

    python bench/distributed/hosts.py --hosts 3 --rate 100mbit --memory 500M -- -m skerry train digits-mlp --out runs/x
    python bench/distributed/hosts.py --clean    # remove what killed owners left; making hosts does so too

A host is a network namespace with an interface ``eth0``, joined to a bridge by a veth pair. Token buckets (``tc ...
tbf``) limit its egress (on ``eth0``) and its ingress (on the other end of the pair). A memory cgroup kills what goes
over the limit. The bridge has a namespace of its own, so hosts reach each other and nothing else. Names carry the
owner's pid: ``sk<pid>h<k>``, and ``sk<pid>br`` for the bridge.

Limitations: hosts share the cores, the disk and the files of the machine. Links have no delay except that of their
queues. The counters are the interface's: a packet that the kernel would split later counts with one header, while the
rate is charged for all. A file's cached pages count as memory of the host that reads it first, until they are evicted.
"""

import argparse
import atexit
import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Self

NAMESPACES = Path("/var/run/netns")
NAME = re.compile(r"sk(\d+)(\.\d+)?(h\d+|br)")
JOIN = 'echo $$ > "$0" && exec "$@"'  # a shell that enters the cgroup and becomes the command


def why_not(memory: bool = False) -> str | None:
    """Return why hosts (``memory``: with limited memory) can't be made here, or None; it tries by making one."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} not found: install iproute2"
    try:
        with Hosts(1, rate="100mbit", memory=2**26 if memory else None):
            return None
    except RuntimeError as error:
        return " ".join(str(error).split())


def bucket(rate: str) -> list[str]:
    """Return tc's options for a token bucket. TCP reaches 95% of its rate."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    bits = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2]] if found else 0
    if bits < 1:
        raise ValueError(f"rate {rate!r}: expected a number of bit, kbit, mbit or gbit, such as '100mbit'")
    burst = max(2**16, int(bits / 8 * 0.002))  # the largest unsplit packet; bytes between timer ticks
    queue = max(2**20, int(bits / 8 * 0.2))  # 0.2 s; with less, many hosts that send to one lose packets
    return ["tbf", "rate", f"{int(bits)}bit", "burst", str(burst), "limit", str(burst + queue)]


def tool(*command: str) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


# --- memory cgroups ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """The memory controller of cgroups v1 or v2, mounted at ``root``; the hosts' groups are its children."""

    root: Path
    v2: bool

    def make(self, name: str, limit: int | None) -> None:
        """Make a group that may use ``limit`` bytes, swap included."""
        (self.root / name).mkdir()
        limits = {"memory.max": limit, "memory.swap.max": 0} if self.v2 else {}
        for file, most in (limits or {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}).items():
            if limit is not None and (self.root / name / file).exists():
                (self.root / name / file).write_text(str(most))

    def peak(self, name: str) -> int | None:
        """Return the peak in bytes; None if the kernel does not record it (v2 before Linux 5.19)."""
        file = self.root / name / ("memory.peak" if self.v2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else None

    def kills(self, name: str) -> int:
        """Return the number of its processes that were killed at the limit."""
        text = (self.root / name / ("memory.events" if self.v2 else "memory.oom_control")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])


@functools.cache
def memory_controller() -> Memory | None:
    """Return the machine's memory controller, if one lets us make groups."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for _, root, kind, options, *_ in sorted(mounts, key=lambda mount: mount[2]):  # cgroup before cgroup2
        with contextlib.suppress(OSError):  # no permission
            if kind == "cgroup" and "memory" in options.split(",") and os.access(root, os.W_OK):
                return Memory(Path(root), v2=False)
            if kind == "cgroup2" and "memory" in Path(root, "cgroup.controllers").read_text().split():
                Path(root, "cgroup.subtree_control").write_text("+memory")
                return Memory(Path(root), v2=True)
    return None


# --- finding and removing, by name and pid ----------------------------------------------------------------------------


def names() -> list[str]:
    """Return the namespaces and groups of all owners, dead or alive."""
    memory = memory_controller()
    folders = [NAMESPACES] * NAMESPACES.is_dir() + ([memory.root] if memory else [])
    return sorted({path.name for folder in folders for path in folder.iterdir() if NAME.fullmatch(path.name)})


def alive(pid: int) -> bool:
    """Return whether a process has this pid and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def in_namespace(pid: int, name: str) -> bool:
    """Return whether a process has entered a namespace."""
    try:
        return Path(f"/proc/{pid}/ns/net").samefile(NAMESPACES / name)
    except OSError:  # it has ended
        return False


def pids_of(name: str) -> list[int]:
    """Return the processes in a namespace or in the memory group of the same name."""
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    if memory := memory_controller():
        with contextlib.suppress(FileNotFoundError):
            inside += (memory.root / name / "cgroup.procs").read_text()
    return sorted(pid for pid in set(map(int, inside.split())) - {os.getpid()} if alive(pid))


def kill(which: Sequence[str], timeout_s: float = 10) -> None:
    """Kill every process in these namespaces and groups, and wait until all are gone."""
    deadline = time.monotonic() + timeout_s
    while pids := [pid for name in which for pid in pids_of(name)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {pids} were killed {timeout_s:.0f} s ago and are still there")
        time.sleep(0.005)


def remove(which: Sequence[str]) -> None:
    """Remove these namespaces and groups, and kill what runs in them; another process may be doing the same."""
    kill(which)
    for name in which:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        deadline = time.monotonic() + 5
        while (memory := memory_controller()) and (memory.root / name).is_dir():
            try:
                (memory.root / name).rmdir()
            except OSError:  # still busy after its last process, or a process came late
                if time.monotonic() > deadline:
                    raise
                kill([name])
                time.sleep(0.005)


def clean() -> list[str]:
    """Remove what owners that no longer run left behind; return the names."""
    left = [name for name in names() if (found := NAME.fullmatch(name)) and not alive(int(found[1]))]
    remove(left)
    return left


# --- hosts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Exit codes, traffic during this run, peak memory (of the host's whole life) and logs, one per host."""

    codes: list[int]
    seconds: float
    sent_bytes: list[int]
    received_bytes: list[int]
    peak_memory: list[int | None]
    logs: list[Path]


@dataclass(frozen=True)
class Job:
    """torchrun on every host: ``processes`` are its agents; the other ``hosts.pids(k)`` are their workers."""

    hosts: "Hosts"
    processes: list[subprocess.Popen[str]]
    logs: list[Path]

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Wait for all and return their exit codes; TimeoutError, without killing any, after ``timeout_s``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        codes = [process.poll() for process in self.processes]
        if None in codes:
            late = codes.index(None)
            raise TimeoutError(f"torchrun in host {late} still runs after {timeout_s} s; see {self.logs[late]}")
        return [code for code in codes if code is not None]

    def kill(self) -> None:
        """Kill everything that runs on the hosts, and wait until it is gone."""
        kill(self.hosts.names)
        self.wait()


class Hosts:
    """Hosts that are made on entering ``with``, and removed with everything that runs on them on leaving it.

    They are also removed when the interpreter ends or gets SIGINT, SIGTERM or SIGHUP. After a SIGKILL they are removed
    when the next hosts are made.

    Args:
        num_hosts: 1 to 99.
        rate: of each host's egress and ingress, as tc writes it (``100mbit``, ``1.5gbit``); None: no limit.
        memory: bytes that the processes of a host may use together; None: no limit.

    Raises:
        RuntimeError: on entering, if hosts can't be made here; see :func:`why_not`.
        ValueError: a number of hosts or a rate that is not possible.

    Example:
        >>> with Hosts(4, rate="100mbit", memory=500 * 2**20) as hosts:
        ...     outcome = hosts.torchrun(["-m", "skerry", "train", "digits-mlp"], out=Path("runs/logs"), timeout_s=60)
    """

    def __init__(self, num_hosts: int, rate: str | None = None, memory: int | None = None) -> None:
        if not 1 <= num_hosts <= 99:
            raise ValueError(f"num_hosts {num_hosts}: expected 1 to 99")
        self.owner, self.memory = os.getpid(), memory
        self.bucket = bucket(rate) if rate else None
        # torchrun orders hosts by the text of their addresses: with three digits each, host k gets group rank k
        self.addresses = [f"10.{self.owner // 256 % 256}.{self.owner % 256}.{101 + k}" for k in range(num_hosts)]
        self.names: list[str] = []
        self.bridge = ""
        self._groups: Memory | None = None
        self._processes: list[subprocess.Popen[str]] = []
        self._ports = itertools.count(29400)
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> Self:
        clean()
        used = names()
        own = (f"sk{self.owner}{more}" for more in ("", *(f".{i}" for i in range(1, 100))))
        prefix = next(prefix for prefix in own if f"{prefix}br" not in used)  # this process may have hosts already
        self.names = [f"{prefix}h{k}" for k in range(len(self.addresses))]
        self.bridge = f"{prefix}br"
        atexit.register(self.close)
        try:
            self._handle_signals()
            self._make()
        except OSError as error:
            self.close()
            raise RuntimeError(str(error)) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs on the hosts and remove them; may be called twice."""
        if os.getpid() != self.owner:
            return  # a forked child that ends
        for process in self._processes:
            process.kill()  # it may not have reached its host
        remove([name for name in names() if name in (*self.names, self.bridge)])
        for process in self._processes:
            process.wait()
        while self._handled:
            signal.signal(self._handled.pop(), signal.SIG_DFL)
        atexit.unregister(self.close)

    def _handle_signals(self) -> None:
        """Turn signals that would end the process at once into SystemExit, as SIGINT becomes KeyboardInterrupt."""

        def leave(signum: int, frame: FrameType | None) -> None:
            raise SystemExit(128 + signum)

        for which in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(which) == signal.SIG_DFL:
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(which, leave)
                    self._handled.append(which)

    def _make(self) -> None:
        """Make the bridge and the hosts."""
        tool("ip", "netns", "add", self.bridge)
        tool("ip", "-n", self.bridge, "link", "add", "name", "switch", "type", "bridge")
        tool("ip", "-n", self.bridge, "link", "set", "switch", "addrgenmode", "none", "up")
        for k, name in enumerate(self.names):
            tool("ip", "netns", "add", name)
            peer = ["peer", "name", f"h{k}", "netns", self.bridge]
            tool("ip", "link", "add", "eth0", "netns", name, "type", "veth", *peer)
            # no IPv6 address: neighbour discovery counts as traffic
            tool("ip", "-n", self.bridge, "link", "set", f"h{k}", "master", "switch", "addrgenmode", "none", "up")
            tool("ip", "-n", name, "link", "set", "eth0", "addrgenmode", "none", "up")
            tool("ip", "-n", name, "link", "set", "lo", "up")
            tool("ip", "-n", name, "address", "add", f"{self.addresses[k]}/24", "dev", "eth0")
            for where, end in ((name, "eth0"), (self.bridge, f"h{k}")):
                if self.bucket:
                    tool("tc", "-n", where, "qdisc", "add", "dev", end, "root", *self.bucket)
        self._groups = self._make_groups()

    def _make_groups(self) -> Memory | None:
        """Make the hosts' memory groups; return None if that is impossible and no limit was given."""
        groups = memory_controller()
        if self.memory is not None and groups is None:
            raise RuntimeError("no memory controller (cgroups v1 or v2) lets us make groups here")
        try:
            for name in self.names if groups else ():
                assert groups is not None
                groups.make(name, self.memory)
        except OSError:
            if self.memory is not None:
                raise
            return None
        return groups

    def run(
        self, k: int, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on host ``k`` to its end, whatever its exit code; ``env`` is added to this environment."""
        environment = {**os.environ, **(env or {})}
        inside = self._inside(k, command)
        return subprocess.run(inside, env=environment, timeout=timeout_s, capture_output=True, text=True)

    def popen(
        self, k: int, command: Sequence[str], *, env: Mapping[str, str] | None = None, log: IO[str] | int | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on host ``k``; its output goes to ``log``, a file or one of subprocess's constants."""
        process = subprocess.Popen(
            self._inside(k, command), env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        while process.poll() is None and not in_namespace(process.pid, self.names[k]):
            time.sleep(0.001)
        return process

    def _inside(self, k: int, command: Sequence[str]) -> list[str]:
        """Return a command line that turns into ``command`` on host ``k`` and keeps its pid."""
        inside = ["ip", "netns", "exec", self.names[k], *command]
        if self._groups is None:
            return inside
        return ["sh", "-c", JOIN, str(self._groups.root / self.names[k] / "cgroup.procs"), *inside]

    def start(
        self, args: Sequence[str], *, out: Path, env: Mapping[str, str] | None = None, nproc_per_node: int = 1
    ) -> Job:
        """Start torchrun on every host; host ``k`` has group rank ``k``.

        Args:
            args: for torchrun: ``["script.py", ...]`` or ``["-m", "package", ...]``.
            out: the folder for the logs, ``host-<k>.log``.
            env: added to this environment; ``OMP_NUM_THREADS`` is 1 unless it is set.
            nproc_per_node: workers per host.
        """
        out.mkdir(parents=True, exist_ok=True)
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        environment = {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": "eth0", **(env or {})}
        endpoint = f"{self.addresses[0]}:{next(self._ports)}"
        job = Job(self, [], [out / f"host-{k}.log" for k in range(len(self.names))])
        for k, log in enumerate(job.logs):
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(self.names)),
                "--nproc-per-node", str(nproc_per_node), "--rdzv-id", "hosts", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", endpoint, "--rdzv-conf", f"is_host={'true' if k == 0 else 'false'}",
                "--local-addr", self.addresses[k], *args,
            ]  # fmt: skip
            with log.open("w") as file:
                job.processes.append(self.popen(k, command, env=environment, log=file))
        return job

    def torchrun(
        self, args: Sequence[str], *, out: Path, env: Mapping[str, str] | None = None, nproc_per_node: int = 1,
        timeout_s: float | None = None,
    ) -> Outcome:  # fmt: skip
        """Start torchrun (see :meth:`start`), wait, and count; after ``timeout_s`` kill all and raise TimeoutError."""
        sent, received, started = self.sent_bytes(), self.received_bytes(), time.monotonic()
        job = self.start(args, out=out, env=env, nproc_per_node=nproc_per_node)
        try:
            codes = job.wait(timeout_s)
        except BaseException:
            job.kill()
            raise
        return Outcome(
            codes=codes,
            seconds=time.monotonic() - started,
            sent_bytes=[now - then for now, then in zip(self.sent_bytes(), sent, strict=True)],
            received_bytes=[now - then for now, then in zip(self.received_bytes(), received, strict=True)],
            peak_memory=self.peak_memory(),
            logs=job.logs,
        )

    def pids(self, k: int) -> list[int]:
        """Return the processes on host ``k``, by this machine's pids."""
        return pids_of(self.names[k])

    def sent_bytes(self) -> list[int]:
        """Return the bytes that each host has sent since it was made, headers and acknowledgements included."""
        return self._counted("tx")

    def received_bytes(self) -> list[int]:
        """Return the bytes that each host has received since it was made."""
        return self._counted("rx")

    def _counted(self, direction: str) -> list[int]:
        """Return a counter of each host's interface."""
        links = (tool("ip", "-n", name, "-s", "-j", "link", "show", "eth0") for name in self.names)
        return [int(json.loads(link)[0]["stats64"][direction]["bytes"]) for link in links]

    def peak_memory(self) -> list[int | None]:
        """Return each host's peak memory in bytes, cached files included; None where it is not recorded."""
        return [self._groups.peak(name) if self._groups else None for name in self.names]

    def out_of_memory(self) -> list[int]:
        """Return, per host, the number of processes that were killed at its limit."""
        return [self._groups.kills(name) if self._groups else 0 for name in self.names]


# --- the command ------------------------------------------------------------------------------------------------------


def size(text: str) -> int:
    """Return the bytes of a size such as ``500M``, in powers of 1024."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of bytes, or of K, M or G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def show(outcome: Outcome, killed: Sequence[int]) -> None:
    """Print the ends of the logs of host 0 and of failed hosts, and a row for each host."""
    for k, log in enumerate(outcome.logs):
        if k == 0 or outcome.codes[k]:
            print(f"--- {log}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")
    print("host    sent MB  received MB  peak MB  exit code")
    for k, code in enumerate(outcome.codes):
        sent, received, peak = outcome.sent_bytes[k] / 1e6, outcome.received_bytes[k] / 1e6, outcome.peak_memory[k]
        why = f"  ({killed[k]} killed at the memory limit)" if killed[k] else ""
        print(f"{k:<4}{sent:11.2f}{received:13.2f}{'-' if peak is None else f'{peak / 1e6:.0f}':>9}{code:11}{why}")
    print(f"{outcome.seconds:.1f} s", flush=True)


def main() -> int:
    """Run a command by torchrun on all hosts; return the worst exit code."""
    parser = argparse.ArgumentParser(description="run torchrun on several hosts, made on this machine (Linux, root)")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate", help="of each host's link, such as 100mbit; default: no limit")
    parser.add_argument("--memory", type=size, help="of each host, such as 500M; default: no limit")
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--timeout", type=float, help="seconds")
    parser.add_argument("--logs", type=Path, default=Path("runs/hosts"))
    parser.add_argument("--clean", action="store_true", help="only remove what killed owners left")
    parser.add_argument("command", nargs="*", help="for torchrun: -- script.py ... or -- -m package ...")
    o = parser.parse_args()
    if o.clean:
        print("removed:", *(clean() or ["nothing"]))
        return 0
    if not o.command:
        parser.error("nothing to run: expected -- script.py ... or -- -m package ...")
    if problem := why_not(memory=o.memory is not None):
        parser.error(problem)
    try:
        with Hosts(o.hosts, o.rate, o.memory) as hosts:
            outcome = hosts.torchrun(o.command, out=o.logs, nproc_per_node=o.nproc_per_node, timeout_s=o.timeout)
            show(outcome, hosts.out_of_memory())
    except (ValueError, RuntimeError, TimeoutError) as error:
        parser.error(str(error))
    return max([128 - code if code < 0 else code for code in outcome.codes])


if __name__ == "__main__":
    sys.exit(main())
