"""An algorithm is a choice of the parts: who holds what, how long, and what becomes of momenta.

The published ones are in ``skerry.algorithms``, a few lines each.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from skerry.merge.outer import Outer
from skerry.partitions.assignment import Partition
from skerry.trained import Given, Trained

StatePolicy = Literal["reset", "travel", "stay"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What the round loop needs to know of a method.

    Attributes:
        name: for people and files.
        partition: who holds which units in each round.
        local_steps: steps between two exchanges.
        optimizer_state: ``"reset"``: every round starts with a fresh optimizer. ``"travel"``: momenta stay with their
            elements, move with the units and are averaged where weights are; it costs the bytes of the state.
            ``"stay"``: each worker keeps its own and never shows it; only for workers that keep their units.
        overlap: above 0 the mean of parameters that all workers hold whole travels while they do the first ``overlap``
            steps of the next round. Each begins it with its own values V_w (a refused worker with those it began the
            last round with), and is corrected when these steps are done: ``W_w <- W_w + mean_v V_v - V_w``. It hides
            the time of these bytes; gradients of these steps are taken at points that differ by what the workers
            disagreed on. The full model is what it is without: the mean. Zhou et al.: DaSGD, 2020, arXiv 2006.00441,
            delays the averaging of local SGD so.
        outer: what the workers' moves do to the weights; None: these become their mean. Only for workers that keep
            their units.
        synchronous: whether gradients are averaged over all workers in every step. Needs one process a worker.
        trains: what is trained: the given model, or other nets instead (``trained.py``).
        rounds_around: rounds until every piece has been with every worker, where fewer are a mistake.
    """

    name: str
    partition: Partition
    local_steps: int
    optimizer_state: StatePolicy = "reset"
    overlap: int = 0
    outer: Outer | None = None
    synchronous: bool = False
    trains: Trained = field(default_factory=Given)
    rounds_around: int = 1

    @property
    def keeps(self) -> bool:
        """Whether workers keep something of their units for themselves, and so must keep their units."""
        return self.optimizer_state == "stay" or self.outer is not None

    def __post_init__(self) -> None:
        if self.local_steps < 1:
            raise ValueError(f"local_steps={self.local_steps}: expected at least 1")
        if self.optimizer_state not in get_args(StatePolicy):
            raise ValueError(f"optimizer_state='{self.optimizer_state}': expected 'reset', 'travel' or 'stay'")
        if not 0 <= self.overlap <= self.local_steps:
            raise ValueError(f"overlap={self.overlap}: expected 0 (none) to local_steps={self.local_steps}")
        if self.overlap and (self.outer or self.synchronous):
            raise ValueError(f"overlap={self.overlap}: '{self.name}' needs the mean before the next step; leave it out")
