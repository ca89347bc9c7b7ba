"""What the round loop asks of a runtime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Expected = Callable[[int], Mapping[str, Tensor]]
"""For a worker, empty tensors (on the meta device) like those it hands over, by name."""


@dataclass(frozen=True)
class Handover:
    """What a worker gives to the others at the end of its local steps.

    Attributes:
        worker: its number.
        round: the round it trained in.
        tensors: its narrow tensors by name.
        loss: mean training loss of the round; not finite where training broke down.
        flop: floating-point operations it spent.
        local_s: seconds it spent in local steps.
    """

    worker: int
    round: int
    tensors: Mapping[str, Tensor]
    loss: float
    flop: float
    local_s: float


class Runtime(Protocol):
    """Runs some of the workers here and brings everybody's pieces together."""

    rank: int
    num_processes: int
    bytes_sent: float
    """Bytes a worker has sent for exchanges so far, in the mean."""

    def mine(self, num_workers: int) -> list[int]:
        """The workers that run in this process."""
        ...

    def exchange(self, mine: list[Handover], expected: Expected, num_workers: int) -> list[Handover]:
        """Return the handovers of all workers, in order, given those of this process."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` up over all processes."""
        ...

    def begin(self, round: int) -> None:
        """Note that ``round`` begins (so that a death can be reported with its round)."""
        ...
