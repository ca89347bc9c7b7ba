"""Start one process a worker on this machine, watch them, and end them all together.

The group meets through a file in a temporary folder, so no port is taken. A process that dies ends the run within a
second; none outlives the one that started it.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from skerry.runtimes.processes import PeerLost, Processes

_PEER_LOST = 76  # exit code of a worker that only saw another one go
_FAILED = 1
_GRACE_S = 3.0


class WorkerDied(RuntimeError):
    """A worker process ended before its work was done; the message names rank, round and cause."""


def launch(
    work: Callable[..., None],
    num_workers: int,
    *args: object,
    threads: int = 1,
    timeout_s: float = 60.0,
    expected: tuple[type[Exception], ...] = (ValueError, OSError),
) -> None:
    """Run ``work(runtime, *args)`` in ``num_workers`` new processes and return when all are done.

    Args:
        work: a module-level function; the arguments must be picklable (they go to our own children only).
        num_workers: the number of processes.
        threads: torch threads a process.
        timeout_s: how long an exchange waits for a process that has stopped answering.
        expected: exceptions that are told in one line; others come with their traceback.

    Raises:
        WorkerDied: a worker failed; all are gone when it is raised.
    """
    context = multiprocessing.get_context("spawn")
    rounds = context.Array("q", [-1] * num_workers, lock=False)
    done = context.Array("b", [0] * num_workers, lock=False)
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        workers, pipes = [], []
        for rank in range(num_workers):
            ours, theirs = context.Pipe(duplex=False)
            group = (str(Path(folder) / "store"), rank, num_workers, threads, timeout_s)
            process = context.Process(
                target=_main,
                args=(work, args, group, rounds, done, theirs, expected),
                name=f"skerry-{rank}",
                daemon=True,
            )
            process.start()
            theirs.close()
            workers.append(process)
            pipes.append(ours)
        try:
            # `alive` is looked up once a turn: waiting on nothing would be waiting for ever.
            while alive := [w for w in workers if w.exitcode is None]:
                connection.wait([w.sentinel for w in alive])
                if any(w.exitcode is not None and not done[rank] for rank, w in enumerate(workers)):
                    _wait(workers, _GRACE_S)  # the others notice by themselves
                    break
            if not all(done):
                raise WorkerDied(_obituary([w.exitcode for w in workers], list(rounds), list(done), pipes))
        finally:
            for w in workers:
                if w.exitcode is None:
                    w.kill()
            _wait(workers, _GRACE_S)


def _wait(workers: list[Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    for w in workers:
        w.join(max(0.0, until - time.monotonic()))


def _obituary(codes: list[int | None], rounds: list[int], done: list[int], pipes: list["Connection[Any, Any]"]) -> str:
    # Who went without being done, not who only lost a peer; one without a code has not noticed and is killed by us.
    culprits = [r for r, code in enumerate(codes) if code not in (None, _PEER_LOST) and not done[r]]
    rank = culprits[0] if culprits else codes.index(_PEER_LOST)
    code = codes[rank] or 0
    told = ""
    if pipes[rank].poll():
        try:
            told = pipes[rank].recv_bytes().decode()
        except EOFError:
            told = ""
    if told and not culprits:
        return told
    cause = (
        f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended before its work was done (exit code {code})"
    )
    cause = told or cause
    when = f"round {rounds[rank]}" if rounds[rank] >= 0 else "before the first round"
    return f"rank {rank}, {when}: {cause}"


def _main(
    work: Callable[..., None],
    args: tuple[object, ...],
    group: tuple[str, int, int, int, float],
    rounds: Any,
    done: Any,
    pipe: "Connection[Any, Any]",
    expected: tuple[type[Exception], ...],
) -> None:
    """The life of one worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for the parent, which ends us
    _die_with_parent()
    store, rank, num_workers, threads, timeout_s = group
    torch.set_num_threads(threads)

    def on_round(round: int) -> None:
        rounds[rank] = round

    code = 0
    try:
        try:
            timeout = timedelta(seconds=timeout_s)
            dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=num_workers, timeout=timeout)
        except RuntimeError as error:
            raise PeerLost(f"rank {rank}: the other processes did not join within {timeout_s} s") from error
        runtime = Processes(on_round)
        work(runtime, *args)
        done[rank] = 1
        runtime.close()
    except PeerLost as error:
        pipe.send_bytes(str(error).encode())
        code = _PEER_LOST
    except expected as error:
        pipe.send_bytes(str(error)[-8000:].encode())
        code = _FAILED
    except SystemExit as error:  # not ours to make: the others wait for this one
        code = error.code if isinstance(error.code, int) else _FAILED
    except BaseException:
        pipe.send_bytes(traceback.format_exc()[-8000:].encode())  # a pipe nobody reads yet holds 64 KiB
        code = _FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after a lost peer, gloo's destructors may wait for it.
    os._exit(code)


def _die_with_parent() -> None:
    """End this process when the one that started it ends, however that happens."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":  # the kernel kills us even when we are stopped
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(_FAILED)
