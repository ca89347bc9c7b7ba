"""Capacities of sites, by the speed that they measure before the training begins."""

import time
from collections.abc import Mapping, Sequence

from flwr.serverapp import Grid

from skerry.algorithm import Algorithm
from skerry.federated.sites import Sites
from skerry.partitions.capacities import capacities, differ, with_capacities

_MOST_DEALS = 5
"""How often sizes are tried. Differences halve each time where a step costs as much as it has units, or end at once."""


def measured_capacities(
    grid: Grid,
    algorithm: Algorithm,
    *,
    job: str = "",
    numbers: Mapping[int, int] | None = None,
    patience_s: float = 600.0,
    poll_s: float = 0.05,
) -> tuple[float, ...]:
    """Let all sites measure how fast they train, and return the capacities with which they would end together.

    Each takes a few local steps with made-up weights on its own data, with the subnet that it would have: first of
    equal capacities, then of those by its speed, until no capacity is off by 15%. Nothing of it is kept. Give what is
    returned to ``ist(capacities=...)``, or as ``fractions`` (``with_capacities``), at the server and at all sites. So
    assignments stay a function of settings and round, and resuming needs no measurement.

    Args:
        grid: of Flower.
        algorithm: with any capacities or fractions; the same at the sites.
        job: sent along, see ``Federated``.
        numbers: the site of each node, see ``Federated``.
        patience_s: seconds to wait for all sites, in each measurement.
        poll_s: seconds between two looks for replies.

    Returns:
        One number per site, relative to each other.

    Raises:
        ValueError: subnets of the algorithm are all alike, or other clients are workers in each round.
        TooFewSites: not all sites have measured in time.
    """
    num = algorithm.num_parts
    if algorithm.clients is not None:
        raise ValueError(
            f"capacities by speed: other clients are workers of '{algorithm.name}' in each round, so a worker has no "
            "speed of its own; leave out the clients"
        )
    now: tuple[float, ...] = (1.0,) * num
    with_capacities(algorithm.partition, now)
    for _ in range(_MOST_DEALS):
        wanted = capacities(now, _speeds(grid, num, now, job, numbers, patience_s, poll_s))
        if not differ(now, wanted):
            break
        now = tuple(float(f"{each:.3g}") for each in wanted)
    return now


def _speeds(
    grid: Grid,
    num: int,
    now: Sequence[float],
    job: str,
    numbers: Mapping[int, int] | None,
    patience_s: float,
    poll_s: float,
) -> list[float]:
    """Return the local steps per second of each site with the capacities ``now``."""
    sites = Sites(grid, num, {}, job=job, poll_s=poll_s, ttl_s=patience_s, numbers=numbers, capacities=now)
    sites.wait_for(num, time.monotonic() + patience_s, set(range(num)))
    return [sites.speeds[site] for site in range(num)]
