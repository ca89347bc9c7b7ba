"""All workers in this process, one after the other: slow, obvious, the meaning of all other runtimes."""

from torch import Tensor

from skerry.runtimes.runtime import Expected, Handover


class Serial:
    """The runtime without any exchange: all pieces are here already."""

    def __init__(self) -> None:
        self.rank = 0
        self.num_processes = 1
        self.bytes_sent = 0.0

    def mine(self, num_workers: int) -> list[int]:
        """All workers."""
        return list(range(num_workers))

    def exchange(self, mine: list[Handover], expected: Expected, num_workers: int) -> list[Handover]:
        """Return ``mine``."""
        return mine

    def total(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``."""
        return tensor

    def begin(self, round: int) -> None:
        """Do nothing."""
