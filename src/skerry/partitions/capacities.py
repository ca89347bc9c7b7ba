"""Capacities by measured speed: a faster worker gets a wider subnet, so that all end their local steps together.

A step of a subnet with c times the units costs between c times (one dim of a weight is dealt out) and c^2 times as much
(two dims). A worker's capacity is multiplied by the square root of its speed, as a part of the mean speed: that reaches
equal times for both, at once or by halves. Small changes are left alone, since a new deal costs an exchange.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from skerry.partitions.assignment import Partition
from skerry.partitions.disjoint import Disjoint
from skerry.partitions.fractional import Fractional

_HYSTERESIS = 0.15
"""The part by which some capacity must differ before units are dealt anew."""


def capacities(now: Sequence[float], speeds: Sequence[float]) -> tuple[float, ...]:
    """Return what the capacities of workers should be; their mean is 1.

    Args:
        now: what they are.
        speeds: local steps per second with these; 0: not known, so that the worker is taken for one of mean speed.
    """
    known = [speed for speed in speeds if speed > 0]
    mean = statistics.geometric_mean(known) if known else 1.0
    wanted = [c * math.sqrt(speed / mean if speed > 0 else 1.0) for c, speed in zip(now, speeds, strict=True)]
    return tuple(capacity * len(wanted) / sum(wanted) for capacity in wanted)


def differ(now: Sequence[float], wanted: Sequence[float]) -> bool:
    """Tell whether it pays to deal units anew."""
    return any(abs(math.log(new / old)) > math.log1p(_HYSTERESIS) for old, new in zip(now, wanted, strict=True))


def with_capacities(partition: Partition, given: Sequence[float]) -> Partition:
    """Return the partition with subnets in proportion to ``given``.

    ``Disjoint`` deals all units out. Of the fractional ones the largest fraction stays, and is that of the worker with
    most capacity.

    Raises:
        ValueError: all its subnets are alike.
    """
    if isinstance(partition, Disjoint):
        return replace(partition, capacities=tuple(given))
    if isinstance(partition, Fractional):
        most = max(partition.fractions) / max(given)
        return cast(Partition, replace(partition, fractions=tuple(most * each for each in given)))
    raise ValueError(
        f"{type(partition).__name__}: subnets cannot have the sizes that workers' speeds ask for; use ist, heterofl, "
        "fedrolex or federated_dropout"
    )
