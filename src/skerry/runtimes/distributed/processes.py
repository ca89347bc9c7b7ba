"""One process per worker, joined by ``torch.distributed`` with gloo. For trusted networks only: nothing is encrypted.

No process ever holds the full model (``sharded.py``). No pickle is sent: messages are the bytes of tensors, in an order
and in shapes that every process derives by itself.
"""

import atexit
import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skerry.runtimes.distributed.liveness import Liveness, join_group
from skerry.runtimes.distributed.meeting import PeerLost, Place, adopt_srun, versions
from skerry.runtimes.distributed.sharded import Sharded
from skerry.runtimes.distributed.wire import Wire, WireFormat
from skerry.runtimes.peers import Peers
from skerry.runtimes.runtime import Beginning

PATIENCE_S = 24 * 3600.0
"""Seconds that an exchange waits for a slow process; a lost one is found by ``liveness.py``."""


class Processes(Peers):
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
        super().__init__(dist.get_rank(), dist.get_world_size(), wire)
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

    def at(self, round: int, stage: str) -> None:
        """Note where this process is."""
        super().at(round, stage)
        self._on_stage(f"round {round}, {stage}")
        if self._liveness is not None:
            self._liveness.at(f"round {round}, {stage}")

    def keep(self, beginning: Beginning) -> Sharded:
        """Make the store of this process: only the parts that it stores are read from the source."""
        able = self._liveness is None and _has_nccl(beginning.device)
        all_able = int(self.total(torch.tensor(int(able)))) == self.num_processes
        self._reducing = dist.group.WORLD if all_able else None
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

    def all_gather(self, row: Tensor) -> list[Tensor]:
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


def _end(line: str) -> None:
    """End this process, from the thread that has found another one lost."""
    print(f"skerry: error: {line}", file=sys.stderr, flush=True)
    os._exit(1)
