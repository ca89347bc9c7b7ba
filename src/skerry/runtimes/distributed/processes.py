"""One process a worker, joined by ``torch.distributed`` with gloo. For trusted networks only: nothing is encrypted.

No process ever holds the full model (``sharded.py``). No pickle crosses the wire: what is sent is the bytes of tensors,
in an order and in shapes that every process derives by itself.
"""

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skerry.runtimes.distributed.liveness import JOIN_S, Liveness
from skerry.runtimes.distributed.sharded import Sharded
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.runtime import Beginning, Report

PATIENCE_S = 24 * 3600.0
"""How long an exchange waits for a process that is slow; a lost one is found by ``liveness.py``."""


_JOINS = itertools.count()


class PeerLost(RuntimeError):
    """Another process ended, or did not answer within the group's timeout."""


class Processes:
    """The runtime of one worker process in an initialized ``torch.distributed`` group.

    Args:
        on_stage: called with round and stage, in words, when a stage begins.
        liveness: watches the other processes; without it a stopped one is only seen at the group's timeout.
        wire: ``"exact"``, or ``"bf16"``: float32 values are rounded, up or down at random, to half their bytes.
        buffer_bytes: the most that buffers of an exchange take; those of ``Algorithm.overlap`` take as much again.
    """

    def __init__(
        self,
        on_stage: Callable[[str], None] = lambda where: None,
        liveness: Liveness | None = None,
        *,
        wire: WireFormat = "exact",
        buffer_bytes: int = 64 * 2**20,
    ) -> None:
        self.rank = dist.get_rank()
        self.num_processes = dist.get_world_size()
        self.round = 0
        self._stage = "start"
        self._format: WireFormat = wire
        # Joining must not take for ever; once all are there, a slow one is waited for, and liveness finds a lost one.
        self._liveness = liveness
        self._on_stage = on_stage
        self._group = self._new_group() if liveness is not None else None
        self._wire = Wire(self.num_processes, self.peers, buffer_bytes, self._group)
        self._buffer_bytes = buffer_bytes
        self._other_wire: Wire | None = None
        self._replica: DistributedDataParallel | None = None
        self._beside: Callable[[], None] = lambda: None

    @classmethod
    def join(cls, timeout_s: float = 10.0, *, wire: WireFormat = "exact") -> "Processes":
        """Join the group that torchrun's environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

        A process that gives no sign for ``timeout_s`` is lost: all others then end with one line and exit code 1.

        Raises:
            ConnectionError: the port is in use or the others cannot be reached.
            ValueError: torchrun has not started this process.
        """
        if missing := [v for v in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if v not in os.environ]:
            raise ValueError(
                f"{missing[0]} is not set: torchrun must start this process (torchrun --standalone --nproc-per-node 2 "
                "script.py), or skerry.launch"
            )
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=JOIN_S))
            address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
            attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}.{next(_JOINS)}"
            liveness = Liveness(address, dist.get_rank(), dist.get_world_size(), timeout_s, _end, attempt)
        except (dist.DistError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            what = f"cannot join the group: {said}; check MASTER_ADDR, MASTER_PORT and the network"
            if "EADDRINUSE" in str(error):
                what = "the port is in use; start with torchrun --standalone or another --master-port"
            raise ConnectionError(what) from error
        liveness.mind_sigterm()
        return cls(liveness=liveness, wire=wire)

    @property
    def buffer_bytes(self) -> int:
        """Bytes that buffers of exchanges take by now."""
        return self._wire.buffer_bytes + (self._other_wire.buffer_bytes if self._other_wire else 0)

    def mine(self, num_workers: int) -> list[int]:
        """The worker with this process's rank."""
        if num_workers != self.num_processes:
            raise ValueError(f"{num_workers} workers in {self.num_processes} processes: expected one process a worker")
        return [self.rank]

    def at(self, round: int, stage: str) -> None:
        """Note where this process is."""
        self.round, self._stage = round, stage
        self._on_stage(f"round {round}, {stage}")
        if self._liveness is not None:
            self._liveness.at(f"round {round}, {stage}")

    def keep(self, beginning: Beginning) -> Sharded:
        """Make what this process keeps: only the slices of its own are read from the source."""
        return Sharded(self, self._wire, beginning, wire_format=self._format)

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Hand the module to torch's DistributedDataParallel; buffers are left alone, averaged at the round's end."""
        if self._replica is not None and self._replica.module is module:  # it has its hooks already
            return self._replica, self._backward
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        with self.peers():
            settings: dict[str, Any] = {"init_sync": False, "gradient_as_bucket_view": True, buffers: False}
            self._replica = DistributedDataParallel(module, process_group=self._group, **settings)
        return self._replica, self._backward

    def _backward(self, loss: Tensor) -> None:
        with self.peers():
            loss.backward()  # type: ignore[no-untyped-call]

    def reports(self, mine: Report, agreement: int) -> list[Report]:
        """Return everybody's reports, in order of workers.

        Raises:
            ValueError: ``agreement``, a number of all that must be the same, is another in another process.
        """
        self.agree(agreement, "what is dealt out, to whom and how it is sent")
        figures = [mine.worker, self.round, mine.good, mine.loss, mine.flop, mine.local_s]
        row = torch.tensor(figures, dtype=torch.float64)
        rows = [torch.empty_like(row) for _ in range(self.num_processes)]
        with self.peers():
            dist.all_gather(rows, row, group=self._group)
        reports = []
        for rank, (worker, round, good, *others) in enumerate(r.tolist() for r in rows):
            if (worker, round) != (rank, self.round):
                raise PeerLost(
                    f"{self.where()}: rank {rank} came with the piece of worker {worker:.0f}, round {round:.0f}; start "
                    "all processes with the same settings and the same checkpoint"
                )
            reports.append(Report(rank, bool(good), *others))
        return reports

    def agree(self, number: int, what: str) -> None:
        """Raise ValueError unless ``number`` is the same in all processes; ``what`` says what it stands for."""
        mine = torch.tensor([number])
        all_of_them = [torch.empty_like(mine) for _ in range(self.num_processes)]
        with self.peers():
            dist.all_gather(all_of_them, mine, group=self._group)
        others = [rank for rank, theirs in enumerate(all_of_them) if not torch.equal(theirs, mine)]
        if others:
            raise ValueError(
                f"{self.where()}: {what} differs here from rank {others[0]}; start all processes with the same model, "
                "settings, code and checkpoint"
            )

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        result = tensor.detach().cpu().clone()
        with self.peers():
            dist.all_reduce(result, group=self._group)
        return result.to(tensor.device)

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        """Call it in a thread with a group of processes and a wire of its own; return what waits for it."""
        self._beside()
        if self._other_wire is None:
            self._other_wire = Wire(self.num_processes, self.peers, self._buffer_bytes, self._new_group())
        wire, failed = self._other_wire, list[BaseException]()

        def run() -> None:
            try:
                call(wire)
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=run, daemon=True)  # nobody waits for it when this process goes
        thread.start()

        def wait() -> None:
            thread.join()
            if failed:
                raise failed[0]

        self._beside = wait
        return wait

    def _new_group(self) -> dist.ProcessGroup:
        patience = timedelta(seconds=PATIENCE_S) if self._liveness is not None else None
        with self.peers():
            group: dist.ProcessGroup = dist.new_group(timeout=patience)
        return group

    def close(self) -> None:
        """Leave the group."""
        self._beside()
        if self._liveness is not None:
            self.total(torch.zeros(1))  # others may still have to hear that this one is there
            self._liveness.stop()
        dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # else this process goes, and the others hear of it
            self.close()

    def where(self) -> str:
        """Rank, round and stage, for messages."""
        return f"rank {self.rank}, round {self.round}, {self._stage}"

    @contextmanager
    def peers(self) -> Iterator[None]:
        """Turn what gloo says of a lost process into one line."""
        try:
            yield
        except RuntimeError as error:
            if self._liveness is not None:
                self._liveness.suspect()
            said = f"{self.where()}: lost another process ({str(error).splitlines()[0][:120]})"
            raise PeerLost(said) from error


def _end(line: str) -> None:
    """End this process from the thread that found another lost."""
    print(f"skerry: error: {line}", file=sys.stderr, flush=True)
    os._exit(1)
