"""Starts one process per worker on this machine, watches them, and ends them all together.

The processes meet in a store that this process has at a free port of the loopback interface. If one dies, the run ends
within seconds; if one is stopped, within a timeout. None outlives the process that started it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.distributed as dist

from skerry.runtimes.distributed.liveness import join_group
from skerry.runtimes.distributed.meeting import PeerLost, Place
from skerry.runtimes.distributed.processes import Processes
from skerry.runtimes.distributed.wire import WireFormat

_PEER_LOST = 76  # exit code of a worker that only lost another one
_FAILED = 1
_GRACE_S = 3.0
_START: Literal["spawn"] = "spawn"  # forked processes would share random states, threads and open files of the caller
_STAGE_BYTES = 64


class WorkerDied(RuntimeError):
    """A worker process ended before its work was done. The message names rank, round and cause."""


def launch(
    work: Callable[..., None],
    num_workers: int,
    *args: object,
    threads: int = 1,
    timeout_s: float = 10.0,
    wire: WireFormat = "exact",
    expected: tuple[type[Exception], ...] = (ValueError, OSError),
) -> None:
    """Run ``work(runtime, *args)`` in ``num_workers`` new processes and return when all are done.

    Args:
        work: a module-level function of a runtime (``Processes``) and ``args``.
        num_workers: the number of processes.
        args: further arguments of ``work``; must be picklable.
        threads: torch threads per process.
        timeout_s: a process that gives no sign of life for so many seconds is lost, and all end.
        wire: how floats are sent; see ``Processes``.
        expected: exceptions that are reported in one line; others are reported with their traceback.

    Raises:
        WorkerDied: a worker failed; all processes have ended when it is raised.
        ValueError: torchrun has already started this process.

    Example (a script)::

        import skerry
        from torch import manual_seed, nn, optim, randint, randn

        def work(runtime):
            manual_seed(0)  # the same data and model in every process
            x, y = randn(400, 8), randint(3, (400,))
            model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
            skerry.train(
                model, nn.functional.cross_entropy,
                skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=20, seed=0),
                plan=skerry.discover(model, x), algorithm=skerry.ist(4),
                optimizer=lambda net: optim.SGD(net.parameters(), 0.1),
                num_rounds=5, runtime=runtime,
            )

        if __name__ == "__main__":
            skerry.launch(work, 4)
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            "torchrun has already started this process, so launch() must not; use "
            "'with skerry.Processes.join() as runtime: work(runtime, ...)'"
        )
    context = multiprocessing.get_context(_START)
    stages = context.Array("c", _STAGE_BYTES * num_workers, lock=False)
    done = context.Array("b", [0] * num_workers, lock=False)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    workers, pipes = [], []
    try:
        with _ctrl_c_blocked():
            for rank in range(num_workers):
                ours, theirs = context.Pipe(duplex=False)
                group = (store.port, rank, num_workers, threads, timeout_s, wire)
                process = context.Process(
                    target=_run_worker,
                    args=(work, args, group, stages, done, theirs, expected),
                    name=f"skerry-{rank}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                workers.append(process)
                pipes.append(ours)
        while True:
            # One look per turn: whoever is seen to have failed ends the loop, and whoever is not is waited for. (A
            # process closes its sentinel a moment before it has an exit code.)
            codes = [w.exitcode for w in workers]
            failed = any(code or (code == 0 and not done[rank]) for rank, code in enumerate(codes))
            if failed or None not in codes:
                break
            connection.wait([w.sentinel for w, code in zip(workers, codes, strict=True) if code is None])
        if any(codes) or not all(done):
            where = [
                stages[r * _STAGE_BYTES : (r + 1) * _STAGE_BYTES].split(b"\0")[0].decode() for r in range(num_workers)
            ]
            raise WorkerDied(_failure(codes, where, list(done), pipes))
    finally:
        for w in workers:
            if w.exitcode is None:
                w.kill()
        _join(workers, _GRACE_S)


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Block SIGINT, for this process until the end and for those that it starts for good: this one ends them."""
    resource_tracker.ensure_running()  # it would unblock the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join(workers: list[Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    for w in workers:
        w.join(max(0.0, until - time.monotonic()))


def _failure(codes: list[int | None], where: list[str], done: list[int], pipes: list["Connection[Any, Any]"]) -> str:
    """Return the message that names who failed, where and why."""
    # Those that ended before they were done, except those that only lost a peer. One without an exit code still runs.
    culprits = [r for r, code in enumerate(codes) if code not in (None, 0, _PEER_LOST) or (code == 0 and not done[r])]
    rank = culprits[0] if culprits else codes.index(_PEER_LOST)
    code = codes[rank] or 0
    reported = ""
    if pipes[rank].poll():
        with contextlib.suppress(EOFError):
            reported = pipes[rank].recv_bytes().decode()
    if reported and not culprits:
        return reported
    ended = (
        f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended before its work was done (exit code {code})"
    )
    return f"rank {rank}, {where[rank] or 'before the first round'}: {reported or ended}"


def _run_worker(
    work: Callable[..., None],
    args: tuple[object, ...],
    group: tuple[int, int, int, int, float, WireFormat],
    stages: Any,
    done: Any,
    pipe: "Connection[Any, Any]",
    expected: tuple[type[Exception], ...],
) -> None:
    """Run ``work`` in a worker process, and report how it ended."""
    _die_with_parent()
    port, rank, num_workers, threads, timeout_s, wire = group
    torch.set_num_threads(threads)
    os.environ["LOCAL_RANK"] = str(rank)  # as torchrun does: it says which device is this process's

    def on_stage(where: str) -> None:
        begin = rank * _STAGE_BYTES
        stages[begin : begin + _STAGE_BYTES] = where.encode()[: _STAGE_BYTES - 1].ljust(_STAGE_BYTES, b"\0")

    def on_lost(line: str) -> None:
        pipe.send_bytes(line.encode())
        os._exit(_PEER_LOST)

    code = 0
    try:
        place = Place(host="127.0.0.1", port=port, rank=rank, num_processes=num_workers)
        liveness = join_group(place, timeout_s, on_lost)
        runtime = Processes(on_stage, liveness, wire=wire)
        work(runtime, *args)
        done[rank] = 1
        runtime.close()
    except PeerLost as error:
        pipe.send_bytes(str(error).encode())
        code = _PEER_LOST
    except expected as error:
        pipe.send_bytes(" ".join([str(error), *getattr(error, "__notes__", [])])[-8000:].encode())
        code = _FAILED
    except SystemExit as error:  # the others still wait for this process
        code = error.code if isinstance(error.code, int) else _FAILED
    except BaseException:
        pipe.send_bytes(traceback.format_exc()[-8000:].encode())  # a pipe holds 64 KiB until it is read
        code = _FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: gloo's destructors may wait for a lost peer.
    os._exit(code)


def _die_with_parent() -> None:
    """End this process when its parent ends, in whichever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":  # the kernel kills this process even if it is stopped
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(_FAILED)
