"""An algorithm is a choice of the parts: who holds what, how long, and what becomes of momenta.

The published ones are in ``skerry.algorithms``, a few lines each.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from skerry.merge.outer import Outer
from skerry.partitions.assignment import Partition
from skerry.plan.table import Plan

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
        apart: whether subnets are nets of their own, side by side in the full model: units stay together for the whole
            run, and weights between units of two workers start at zero, so nobody ever trains them. Only for plans by
            which subnets share nothing but vectors (``Plan.shared``).
        where_shared: what to do with other plans; None: they are refused.
        width: below 1 the method trains, instead of the given model, a fresh one with that fraction of each axis.
    """

    name: str
    partition: Partition
    local_steps: int
    optimizer_state: StatePolicy = "reset"
    overlap: int = 0
    outer: Outer | None = None
    synchronous: bool = False
    apart: bool = False
    where_shared: "Algorithm | None" = None
    width: float = 1.0

    def on(self, plan: Plan, model: nn.Module) -> "Algorithm":
        """Return what it does with ``plan`` of ``model``.

        Raises:
            ValueError: subnets would have to be nets of their own, and are not.
        """
        shared = plan.shared(model) if self.apart else None
        if shared is None:
            return self
        if self.where_shared is None:
            raise ValueError(
                f"'{self.name}': {shared} is on every worker, so nets would not be independent; use a plan that deals "
                "every hidden axis out"
            )
        return self.where_shared

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
        if not 0.0 < self.width <= 1.0:
            raise ValueError(f"width={self.width}: expected a fraction above 0, at most 1")
