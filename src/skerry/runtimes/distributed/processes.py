"""One process per worker, joined by ``torch.distributed`` with gloo. For trusted networks only: nothing is encrypted.

No process ever holds the full model (``sharded.py``). No pickle is sent: messages are the bytes of tensors, in an order
and in shapes that every process derives by itself.
"""

import atexit
import contextlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skerry.randomness import seed_of
from skerry.runtimes.distributed.liveness import Liveness, join_group
from skerry.runtimes.distributed.meeting import PeerLost, Place, adopt_srun, versions
from skerry.runtimes.distributed.sharded import Sharded
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.runtime import Beginning, Report

PATIENCE_S = 24 * 3600.0
"""Seconds that an exchange waits for a slow process; a lost one is found by ``liveness.py``."""

_MOST_TOLD = 4  # settings that differ, in one message
_LONG = 60  # the most characters of a value in a message


class Processes:
    """The runtime of one worker process in an initialized ``torch.distributed`` group.

    ``skerry.launch`` makes one per worker on this machine; ``Processes.join`` makes one where a launcher has started
    this process. As a context manager it leaves the group at the end. It has gloo groups of its own. Of a group that
    existed before it uses NCCL, for averages of what all workers hold whole and for ``ddp``, if all train on CUDA.

    Args:
        on_stage: called with round and stage, in words, when a stage begins.
        liveness: watches the other processes. Without it the default group is somebody else's and stays, and who
            started the processes has to notice one that is stopped.
        wire: ``"exact"``, or ``"bf16"``: float32 values are sent with half their bytes, rounded up or down at random.
        buffer_bytes: the most bytes that the buffers of an exchange take; ``Algorithm.overlap`` takes as many again.
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
        self._liveness = liveness
        self._on_stage = on_stage
        self._groups: list[dist.ProcessGroup] = []
        self._group = self._new_group()
        self._wire = Wire(self.num_processes, self.peers, buffer_bytes, self._group)
        self._buffer_bytes = buffer_bytes
        self._other_wire: Wire | None = None
        self._beside: Callable[[], None] = lambda: None
        self._reducing: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, timeout_s: float = 10.0, *, wire: WireFormat = "exact") -> "Processes":
        """Join the other processes: in the group that exists, else in the one that the environment names.

        A group that exists (of NCCL or gloo, made by your script, Ray Train or Accelerate) is used as it is, and
        stays. Else torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) name the group; where only srun's
        are set, they are set from these.

        Args:
            timeout_s: a process that gives no sign of life for so many seconds is lost. All others then end with one
                line and exit code 1. In a group that exists, whoever started the processes has to notice that.
            wire: how floats are sent; see the class.

        Raises:
            ConnectionError: the port is in use, or the other processes cannot be reached.
            PeerLost: another process failed before it joined, or did not come.
            ValueError: no launcher has started this process, or another one has another version of Skerry or torch.

        Example (of a script that ``torchrun --standalone --nproc-per-node 4 script.py`` starts)::

            import skerry
            from torch import manual_seed, nn, optim, randint, randn

            manual_seed(0)  # the same data and model in every process
            x, y = randn(400, 8), randint(3, (400,))
            model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
            data = skerry.Shards(x, y, skerry.split(y, 4, "iid", seed=0), batch_size=20, seed=0)
            with skerry.Processes.join() as runtime:
                skerry.train(
                    model, nn.functional.cross_entropy, data, plan=skerry.discover(model, x), runtime=runtime,
                    algorithm=skerry.ist(4), optimizer=lambda net: optim.SGD(net.parameters(), 0.1), num_rounds=5,
                )
        """
        if dist.is_initialized():
            with contextlib.suppress(ValueError):  # no address in the environment: gloo finds its interface itself
                Place.of_environment().use_its_interface()
            runtime = cls(wire=wire)
            runtime.agree({"versions": versions()})
            return runtime
        adopt_srun()
        liveness = join_group(Place.of_environment(), timeout_s, _end)
        liveness.delay_sigterm()
        runtime = cls(liveness=liveness, wire=wire)
        atexit.register(runtime._leave_at_exit)
        return runtime

    @property
    def buffer_bytes(self) -> int:
        """Bytes that the buffers of exchanges take now."""
        return self._wire.buffer_bytes + (self._other_wire.buffer_bytes if self._other_wire else 0)

    def mine(self, num_workers: int) -> list[int]:
        """Return the worker with the rank of this process."""
        if num_workers != self.num_processes:
            raise ValueError(
                f"{num_workers} workers in {self.num_processes} processes: expected one process per worker"
            )
        return [self.rank]

    def at(self, round: int, stage: str) -> None:
        """Note where this process is."""
        self.round, self._stage = round, stage
        self._on_stage(f"round {round}, {stage}")
        if self._liveness is not None:
            self._liveness.at(f"round {round}, {stage}")

    def keep(self, beginning: Beginning) -> Sharded:
        """Make the store of this process: only the parts that it stores are read from the source."""
        able = self._liveness is None and _has_nccl(beginning.device)
        if int(self.total(torch.tensor(int(able)))) == self.num_processes:
            self._reducing = dist.group.WORLD
        return Sharded(self, self._wire, beginning, wire_format=self._format)

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Wrap the module in DistributedDataParallel; buffers are averaged at the end of the round only."""
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        with self.peers():
            settings: dict[str, Any] = {"init_sync": False, "gradient_as_bucket_view": True, buffers: False}
            wrapped = DistributedDataParallel(module, process_group=self._reducing or self._group, **settings)

        def backward(loss: Tensor) -> None:
            with self.peers():
                loss.backward()  # type: ignore[no-untyped-call]

        return wrapped, backward

    def reports(self, mine: Report, agreement: Mapping[str, str]) -> list[Report]:
        """Return the reports of all workers, in order.

        Args:
            mine: the report of the worker here.
            agreement: what must be the same in all processes.

        Raises:
            ValueError: ``agreement`` differs.
            PeerLost: a process was lost, or is in another round.
        """
        self.agree(agreement)
        figures = [mine.worker, self.round, mine.good, mine.loss, mine.flop, mine.local_s]
        row = torch.tensor(figures, dtype=torch.float64)
        reports = []
        for rank, (worker, round, good, *others) in enumerate(r.tolist() for r in self._all_gather(row)):
            if (worker, round) != (rank, self.round):
                raise PeerLost(
                    f"{self.where()}: rank {rank} has worker {worker:.0f} and is in round {round:.0f}; start "
                    "all processes with the same settings and the same checkpoint"
                )
            reports.append(Report(rank, bool(good), *others))
        return reports

    def agree(self, values: Mapping[str, str]) -> None:
        """Raise ValueError unless all processes have the same ``values`` by name; it says what differs, and how."""
        values = {**values, "wire": self._format}
        text = json.dumps(values, sort_keys=True)
        digest = torch.tensor([seed_of(text)])
        if all(torch.equal(theirs, digest) for theirs in self._all_gather(digest)):
            return
        of_all: list[dict[str, str]] = [json.loads(theirs) for theirs in self.gather(text)]
        rank = next(rank for rank, theirs in enumerate(of_all) if theirs != values)
        theirs = of_all[rank]
        names = [name for name in {**values, **theirs} if values.get(name) != theirs.get(name)]
        told = [f"{name} is {_differing(values.get(name), theirs.get(name), rank)}" for name in names]
        more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        raise ValueError(
            f"{self.where()}: {'; '.join(told[:_MOST_TOLD])}{more}; start all processes with the same settings, model, "
            "code and checkpoint"
        )

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes, in order."""
        mine = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)
        sizes = [int(size) for size in self._all_gather(torch.tensor([len(mine)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        rows = self._all_gather(padded)
        return [bytes(row[: size - 1].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        result = tensor.detach().cpu().clone()
        with self.peers():
            dist.all_reduce(result, group=self._group)
        return result.to(tensor.device)

    def sum_in_place(self) -> Callable[[Tensor], None] | None:
        """Return a function that sums a tensor over all processes, on its device; None where gloo would have to."""
        if self._reducing is None:
            return None

        def sum_(tensor: Tensor) -> None:
            with self.peers():
                dist.all_reduce(tensor, group=self._reducing)

        return sum_

    def _all_gather(self, row: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(row) for _ in range(self.num_processes)]
        with self.peers():
            dist.all_gather(rows, row, group=self._group)
        return rows

    def beside(self, call: Callable[[Wire], None]) -> Callable[[], None]:
        """Run ``call`` in a thread, with a process group and a wire of its own; return a function that waits for it."""
        self._beside()
        if self._other_wire is None:
            self._other_wire = Wire(self.num_processes, self.peers, self._buffer_bytes, self._new_group())
        wire, failed = self._other_wire, list[BaseException]()

        def run() -> None:
            try:
                call(wire)
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=run, daemon=True)  # so that this process can end without it
        thread.start()

        def wait() -> None:
            thread.join()
            if failed:
                raise failed[0]

        self._beside = wait
        return wait

    def _new_group(self) -> dist.ProcessGroup:
        # Joining has a short timeout. Once all have joined, slow ones are waited for; liveness finds lost ones.
        with self.peers():
            self._groups.append(dist.new_group(timeout=timedelta(seconds=PATIENCE_S), backend="gloo"))
        return self._groups[-1]

    def close(self) -> None:
        """Leave the group; one that existed before ``join`` stays."""
        atexit.unregister(self._leave_at_exit)
        self._beside()
        if self._liveness is not None:
            self.total(torch.zeros(1))  # others may still wait for this process's heartbeat
            self._liveness.stop()
            dist.destroy_process_group()
        else:
            for group in self._groups:
                dist.destroy_process_group(group)

    def _leave_at_exit(self) -> None:
        """Do at the end of the interpreter what ``with`` does, where it was not used."""
        error: BaseException | None = getattr(sys, "last_value", None)  # what ended it; None for sys.exit
        if error is None and self._liveness is not None:
            self._liveness.end_together()  # nothing of the group: the others may be in the middle of a training
        else:
            self.__exit__(None if error is None else type(error), error, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        atexit.unregister(self._leave_at_exit)
        if error is None:
            self.close()
        elif self._liveness is not None and not isinstance(error, PeerLost):
            told = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            self._liveness.tell(" ".join([told, *getattr(error, "__notes__", [])]))

    def where(self) -> str:
        """Return rank, round and stage, for messages."""
        return f"rank {self.rank}, round {self.round}, {self._stage}"

    @contextlib.contextmanager
    def peers(self) -> Iterator[None]:
        """Turn gloo's error about a lost process into ``PeerLost``, with one line."""
        try:
            with self._liveness.waits() if self._liveness is not None else contextlib.nullcontext():
                yield
        except RuntimeError as error:
            if self._liveness is not None:
                self._liveness.suspect()
            said = f"{self.where()}: lost another process ({str(error).splitlines()[0][:120]})"
            raise PeerLost(said) from error


def _has_nccl(device: torch.device) -> bool:
    """Tell whether the default group sums tensors of ``device`` by NCCL."""
    return f"{device.type}:nccl" in dist.get_backend_config().split(",")


def _differing(mine: str | None, theirs: str | None, rank: int) -> str:
    """Return two values that differ in words; of long ones what comes shortly before and after the first difference."""
    same = next((k for k, pair in enumerate(zip(mine or "", theirs or "", strict=False)) if len({*pair}) > 1), 0)
    begin = max(0, same - _LONG // 4)
    here, there = (
        "not given" if v is None else v if len(v) <= _LONG else f"...{v[begin : begin + _LONG]}..."
        for v in (mine, theirs)
    )
    return f"{here} here and {there} on rank {rank}"


def _end(line: str) -> None:
    """End this process, from the thread that has found another one lost."""
    print(f"skerry: error: {line}", file=sys.stderr, flush=True)
    os._exit(1)
