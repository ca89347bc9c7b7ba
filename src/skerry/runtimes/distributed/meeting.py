"""Where processes meet: the group's store, in which one that fails tells the others why.

The store (a ``TCPStore``) also answers while processes wait for each other in gloo, or have not all come yet. The first
failure message that is written counts. Every process reads it with its next heartbeat (``liveness.py``), or while it
waits for the others to join, and ends. So whoever writes it stays until the others have read it, and the first process,
with which the store may end, stays longest.
"""

import contextlib
import itertools
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import torch
import torch.distributed as dist

JOIN_S = 300.0
"""Seconds that processes wait for each other at the start."""
_QUIET_S = 20.0
"""Seconds after which a process says for whom it waits."""
_REACHED_S = 15.0
"""Seconds in which torchrun's store must answer: it was there before this process."""
_LATE_S = 30.0
"""Seconds for which a process that fails before it joins waits for others to come and read why."""
_TELL_S = 5.0
"""Seconds for which a process that fails waits for others to read why."""
_FAILURE, _NO_FAILURE = "failure", "-"
BUSY = "busy"
"""Names of the keys for signs of life from outside (``busy.py``) begin with it."""
ENDS, _LEFT = "ends", "left"
ENDING = (ENDS, _LEFT)
"""In place of signs of life: the process ends, or does not use the store any more."""
_JOINS = itertools.count()


class PeerLost(RuntimeError):
    """Another process ended, or did not answer within the group's timeout."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the group's store is, and which of its processes this is.

    Attributes:
        serves: whether the store is in this process.
        reached_s: seconds in which to reach it.
        restart: distinguishes the group from earlier ones that used the same store.
        num_joined: groups that this process has joined before.
    """

    host: str
    port: int
    rank: int
    num_processes: int
    serves: bool = False
    reached_s: float = JOIN_S
    restart: str = "0"
    num_joined: int = 0

    @classmethod
    def of_environment(cls) -> Self:
        """Return what the environment says, in the variables that torchrun sets.

        Raises:
            ValueError: one of them is missing.
        """
        if missing := [v for v in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if v not in os.environ]:
            raise ValueError(
                f"{missing[0]} is not set: start this process with torchrun (torchrun --standalone --nproc-per-node 2 "
                "script.py), srun, or skerry.launch"
            )
        of_torchrun, rank = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True", int(os.environ["RANK"])
        return cls(
            host=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            rank=rank,
            num_processes=int(os.environ["WORLD_SIZE"]),
            serves=rank == 0 and not of_torchrun,
            reached_s=_REACHED_S if of_torchrun else JOIN_S,
            restart=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
            num_joined=next(_JOINS),
        )

    def open(self, timeout_s: float, *, serve: bool = False) -> Any:
        """Return a connection to the store; RuntimeError if it cannot be reached in ``timeout_s`` seconds."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self.host, self.port, is_master=serve, wait_for_workers=False, multi_tenant=serve,
            timeout=timedelta(seconds=timeout_s),
        )  # fmt: skip
        return dist.PrefixStore(self.prefix, store)  # type: ignore[attr-defined]

    @property
    def prefix(self) -> str:
        """What the names of the group's keys begin with."""
        return f"skerry/{self.restart}.{self.num_joined}"

    def use_its_interface(self) -> None:
        """Let gloo use the network interface by which the store is reached, unless GLOO_SOCKET_IFNAME names one.

        By default gloo uses the address of the host's own name, which on many machines is 127.0.1.1.

        Raises:
            ConnectionError: the name of the store's host is loopback here, where other hosts cannot reach gloo.
        """
        if sys.platform != "linux" or "GLOO_SOCKET_IFNAME" in os.environ:
            return
        import fcntl

        of_interface = 0x8915  # SIOCGIFADDR
        own = ""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect((self.host, self.port))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # it has no address
                    found = fcntl.ioctl(probe, of_interface, struct.pack("256s", name.encode()))
                    if socket.inet_ntoa(found[20:24]) == own:
                        os.environ["GLOO_SOCKET_IFNAME"] = name
        several_hosts = int(os.environ.get("LOCAL_WORLD_SIZE", self.num_processes)) < self.num_processes
        if several_hosts and own.startswith("127.") and self.host != "localhost" and not self.host.startswith("127."):
            raise ConnectionError(
                f"{self.host} is loopback here ({own}); give its address (--master-addr, or MASTER_ADDR under srun)"
            )


def num_started() -> int:
    """Return how many processes share a group or were started together, as far as the environment tells; else 1."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS", "1"))


def adopt_srun() -> None:
    """Set the variables that torchrun sets from those that srun sets, unless they are set.

    The store is on the first node of the job step. Its port depends on job and step.
    """
    srun = {name.removeprefix("SLURM_"): value for name, value in os.environ.items() if name.startswith("SLURM_")}
    if "RANK" in os.environ or not {"PROCID", "STEP_NUM_TASKS", "STEP_NODELIST"} <= srun.keys():
        return
    per_node: list[str] = []
    for num, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", srun.get("STEP_TASKS_PER_NODE", srun["STEP_NUM_TASKS"])):
        per_node += [num] * int(times or 1)  # 2(x3),1
    begin, number, end = re.findall(r"([^,\[]*)(?:\[(\w+)[^]]*\])?([^,]*)", srun["STEP_NODELIST"])[0]  # n[07-09,12]
    found = {
        "RANK": srun["PROCID"],
        "WORLD_SIZE": srun["STEP_NUM_TASKS"],
        "LOCAL_RANK": srun.get("LOCALID", "0"),
        "LOCAL_WORLD_SIZE": per_node[int(srun.get("NODEID", 0))],
        "MASTER_ADDR": "127.0.0.1" if len(per_node) == 1 else f"{begin}{number}{end}",
        "MASTER_PORT": str(15000 + (100 * int(srun.get("JOB_ID", 0)) + int(srun.get("STEP_ID", 0))) % 15000),
    }
    for name, value in found.items():
        os.environ.setdefault(name, value)


class Meeting:
    """What a process reads and writes in the store: signs of life, and the failure message.

    Args:
        place: of the store.
        store: a connection of its own, since a call may block it.
    """

    def __init__(self, place: Place, store: Any) -> None:
        self._rank, self._store = place.rank, store
        self._signs = [f"alive/{r}" for r in range(place.num_processes)]
        self._busy = [f"{BUSY}/{r}" for r in range(place.num_processes)]
        store.compare_set(_FAILURE, "", _NO_FAILURE)
        store.set(self._busy[self._rank], "0")

    def wait_for_all(self) -> None:
        """Wait until all processes have come.

        Raises:
            PeerLost: one failed, or did not come.
            ValueError: they have different versions of Skerry or torch.
        """
        own, came, told = versions(), time.monotonic(), False
        of_all = [f"versions/{r}" for r in range(len(self._signs))]
        self._store.set(self._signs[self._rank], "0")
        self._store.set(of_all[self._rank], own)
        while missing := [rank for rank, key in enumerate(of_all) if not self._store.check([key])]:
            failure = self._store.get(_FAILURE).decode()
            waited = time.monotonic() - came
            if failure == _NO_FAILURE and waited > JOIN_S:
                failure = f"rank {missing[0]} did not join within {JOIN_S:.0f} s; see its output"
            if failure != _NO_FAILURE:
                self.leave(_TELL_S)
                raise PeerLost(f"rank {self._rank}, start: {failure}")
            if waited > _QUIET_S and not told:
                told = True
                line = f"skerry: rank {self._rank} waits for rank {missing[0]} to join; see its output"
                print(line, file=sys.stderr, flush=True)
            time.sleep(0.05)
        for rank, theirs in enumerate(v.decode() for v in self._store.multi_get(of_all)):
            if theirs != own:
                self.leave(_TELL_S)
                raise ValueError(
                    f"rank {self._rank}, start: {own} here, {theirs} on rank {rank}; install the same versions on all "
                    "machines"
                )

    def beat(self, sign: str) -> tuple[list[str], list[str], str | None]:
        """Give a sign of life; return those of all processes, from inside and from outside, and the failure message."""
        self._store.set(self._signs[self._rank], sign)
        *signs, failure = (text.decode() for text in self._store.multi_get([*self._signs, *self._busy, _FAILURE]))
        num = len(self._signs)
        return signs[:num], signs[num:], None if failure == _NO_FAILURE else failure

    def tell_of_lost(self, rank: int, text: str) -> str:
        """Tell of a process that is lost, unless there is a failure message already; return the one that counts."""
        self._store.set(self._signs[rank], _LEFT)  # nobody waits for it
        return self._write_failure(text)

    def leave(self, patience_s: float = 0.0) -> None:
        """Note that this process ends, and is not lost; the first one waits for the others, ``patience_s`` at most."""
        if self._rank == 0 and patience_s:
            self._store.set(self._signs[0], ENDS)
            self._wait_for_others([_LEFT], patience_s)
        self._store.set(self._signs[self._rank], _LEFT)

    def tell(self, why: str, patience_s: float = _TELL_S) -> None:
        """Tell why this process ends, and wait until the others have read it, ``patience_s`` at most."""
        self._write_failure(f"rank {self._rank} ended: {' '.join(why.split())[:2000]}")
        self._store.set(self._signs[self._rank], ENDS)
        self._wait_for_others(ENDING, patience_s)
        self.leave(patience_s)

    def _write_failure(self, text: str) -> str:
        failure: str = self._store.compare_set(_FAILURE, _NO_FAILURE, text).decode()
        return failure

    def _wait_for_others(self, signs: Sequence[str], patience_s: float) -> None:
        until, others = time.monotonic() + patience_s, set(self._signs) - {self._signs[self._rank]}
        while time.monotonic() < until and not all(
            self._store.check([other]) and self._store.get(other).decode() in signs for other in others
        ):
            time.sleep(0.02)


def tell_before_joining(why: str) -> None:
    """Tell processes that wait for this one why it does not join.

    Does nothing if torchrun has not started it, or if it has joined.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        place = Place.of_environment()
        if not place.num_joined:
            Meeting(place, place.open(_REACHED_S, serve=place.serves)).tell(why, _LATE_S)


def versions() -> str:
    """Return the versions that all processes must have."""
    return f"skerry {own_version()}, torch {'.'.join(torch.__version__.split('.')[:2])}"


def own_version() -> str:
    """Return the version of Skerry; it is unknown where Skerry is not installed but found by PYTHONPATH."""
    try:
        return version("skerry")
    except PackageNotFoundError:
        return "of unknown version"
