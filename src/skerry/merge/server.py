"""A server that takes in replies as they come, although its model has moved on since they began."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.merge.aggregate import is_exact
from skerry.whole_number import check_whole_number


@dataclass(frozen=True, kw_only=True)
class Server:
    """What becomes of a reply W_i that began from W_s, at a server that has W by now. Either of

        W <- (1 - alpha) W + alpha W_i,        W <- W + alpha (W_i - W_s)     (``adds_moves``),

    for the elements that the reply has; other elements keep their bits. Where several replies make a round, this is
    done with each of them, from the same W, and the results are averaged.

    Args:
        active: the number of clients that train at a time; nobody waits for another one.
        weight: alpha, above 0; at most 1 unless ``adds_moves``.
        adds_moves: which of the two.
        drops_moved: None: units are dealt by the partition. Else the fraction of each axis that a client drops, by how
            much units have moved (``partitions/by_movement.py``).

    Raises:
        ValueError: a value out of range.
    """

    active: int
    weight: float = 1.0
    adds_moves: bool = False
    drops_moved: float | None = None

    def __post_init__(self) -> None:
        check_whole_number("active", self.active, 1)
        if not 0 < self.weight <= (math.inf if self.adds_moves else 1) or self.weight == math.inf:
            raise ValueError(f"weight={self.weight}: expected a number above 0, and at most 1 for a mixture")

    def taken_in(self, now: Tensor, began: Tensor, reply: Tensor) -> Tensor:
        """Return what a part of a tensor becomes: ``now`` at the server, ``began`` and ``reply`` of the client."""
        if is_exact(now):
            return reply
        if self.adds_moves:
            return now + self.weight * (reply - began)
        return torch.lerp(now, reply, self.weight)  # has the bits of the reply at weight 1
