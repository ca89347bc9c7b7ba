"""Capacities by measured speed: a faster member gets a wider subnet, so that all end their local steps together.

A step of a subnet with c times the units costs between c times (one dim of a weight is dealt out) and c^2 times as much
(two dims). A member's capacity is multiplied by the square root of its speed, as a part of the mean speed: that reaches
equal times for both, at once or by halves. Small changes are left alone, since a new deal costs an exchange.
"""

import math
import statistics
from collections.abc import Sequence

from skerry.runtimes.elastic.membership import Candidate

ROUNDS_TIMED = 5
"""Rounds whose median is a member's speed, and without a new deal: in one of them another program may run."""
_HYSTERESIS = 0.15
"""The part by which some capacity must differ before units are dealt anew."""


def capacities(candidates: Sequence[Candidate]) -> tuple[float, ...]:
    """Return what the capacities of members should be, by what they have now and how fast they are; their mean is 1."""
    known = [c.speed for c in candidates if c.speed > 0]
    mean = statistics.geometric_mean(known) if known else 1.0
    wanted = [c.capacity * math.sqrt(c.speed / mean if c.speed > 0 else 1.0) for c in candidates]
    return tuple(capacity * len(wanted) / sum(wanted) for capacity in wanted)


def differ(now: Sequence[float], wanted: Sequence[float]) -> bool:
    """Tell whether it pays to deal units anew."""
    return any(abs(math.log(new / old)) > math.log1p(_HYSTERESIS) for old, new in zip(now, wanted, strict=True))
