"""The serial runtime: all workers in this process, one after the other. Slow and obvious; it defines the meaning."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.plan.table import Plan
from skerry.runtimes.distributed.meeting import num_started
from skerry.runtimes.runtime import Beginning, Change, Runtime, Store
from skerry.runtimes.server_store import ServerStore
from skerry.runtimes.whole_model import WholeModel


class Serial:
    """Runs all workers in this process, one after the other; it holds the full model."""

    def __init__(self) -> None:
        self.rank = 0
        self.num_processes = 1
        self.goes_on = False
        self.change: Change | None = None
        self.ending: Exception | None = None

    def mine(self, num_workers: int) -> list[int]:
        """Return all workers."""
        return list(range(num_workers))

    def resume(self, algorithm: Algorithm, state: Any, sizes: Mapping[str, Tensor], plan: Plan) -> None:
        """Return None: there are no other processes."""

    def went_on(self, state: Any) -> None:
        """Do nothing."""

    def keep(self, beginning: Beginning) -> Store:
        """Keep the model itself."""
        late = beginning.algorithm is not None and beginning.algorithm.server is not None
        return ServerStore(beginning) if late else WholeModel(beginning)

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Raise ValueError: workers run one after the other."""
        raise ValueError(
            "gradients cannot be averaged in every step where workers run one after the other; start one process per "
            "worker (--set runtime=processes, skerry.launch or torchrun)"
        )

    def total(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``."""
        return tensor

    def agree(self, values: Mapping[str, str]) -> None:
        """Do nothing: there is one process."""

    def gather(self, text: str) -> list[str]:
        """Return ``text``."""
        return [text]

    def at(self, round: int, stage: str) -> None:
        """Do nothing."""


def or_serial(runtime: Runtime | None) -> Runtime:
    """Return ``runtime``, or the serial one; warn where a launcher has started several processes that do not share."""
    if runtime is None and (num := num_started()) > 1:
        warnings.warn(
            f"{num} processes were started together, and each trains all workers by itself; give "
            "runtime=skerry.Processes.join()",
            stacklevel=3,  # the caller of train or Session
        )
    return runtime or Serial()
