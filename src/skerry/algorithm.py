"""An algorithm is a choice of the parts: who holds what, how long, and what becomes of momenta.

The published ones are in ``skerry.algorithms``, a few lines each.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from skerry.partition import Partition

StatePolicy = Literal["reset", "travel"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What the round loop needs to know of a method.

    Attributes:
        name: for people and files.
        partition: who holds which units in each round.
        local_steps: steps between two exchanges.
        optimizer_state: ``"reset"``: every round starts with a fresh optimizer. ``"travel"``: momenta stay with their
            elements, move with the units and are averaged where weights are; it costs the bytes of the state.
        width: below 1 the method trains, instead of the given model, a fresh one with that fraction of each axis.
    """

    name: str
    partition: Partition
    local_steps: int
    optimizer_state: StatePolicy = "reset"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.local_steps < 1:
            raise ValueError(f"local_steps={self.local_steps}: expected at least 1")
        if self.optimizer_state not in get_args(StatePolicy):
            raise ValueError(f"optimizer_state='{self.optimizer_state}': expected 'reset' or 'travel'")
        if not 0.0 < self.width <= 1.0:
            raise ValueError(f"width={self.width}: expected a fraction above 0, at most 1")
