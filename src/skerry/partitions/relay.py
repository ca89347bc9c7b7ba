"""Relay: units are dealt once and stay together; after each round every worker hands its subnet on to the next one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from skerry.partitions.assignment import Assignment
from skerry.partitions.disjoint import Disjoint
from skerry.plan.table import Axis


@dataclass(frozen=True)
class Relay:
    """Disjoint subnets that go from worker to worker, so that each meets the data of all:

        worker w has in round t what was dealt to hand (w - t) mod n.

    n rounds are once around. Where an axis has a number of units that n does not divide, subnets differ by a unit, and
    so does what a worker has from round to round.

    Args:
        num_workers: the number of workers n.
        seed: of the dealing.

    Raises:
        ValueError: no workers, or, on dealing, an axis with fewer units than workers.

    References:
        Chang et al.: Distributed deep learning networks among institutions for medical imaging, JAMIA 25(8), 2018: one
        whole model that goes from one owner of data to the next ("cyclical weight transfer"). Here n parts of one model
        go round at the same time.
    """

    num_workers: int
    seed: int = 0
    covers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.assign((), 0)

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units in ``round``."""
        return Assignment(self._dealt.assign(axes, 0).held.roll(round, 0))

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n."""
        return self.assign(axes, round).share()

    @property
    def _dealt(self) -> Disjoint:
        return Disjoint(self.num_workers, self.seed)
