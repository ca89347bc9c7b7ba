"""Capacities by speed, against workers whose time per step is a power of their capacity."""

import random

import pytest

from skerry.partitions import Cyclic, Disjoint, Nested, Sampled
from skerry.partitions.capacities import capacities, differ, with_capacities
from skerry.plan import Axis


def _follow(power, work, noise, rounds=40):
    """Deal anew whenever it pays; return the capacities, and in which rounds they changed."""
    rng, now, changed = random.Random(0), (1.0,) * len(work), []
    for round in range(rounds):
        speeds = [w / c**power * rng.uniform(1 - noise, 1 + noise) for w, c in zip(work, now, strict=True)]
        wanted = capacities(now, speeds)
        if differ(now, wanted):
            now = wanted
            changed.append(round)
    return now, changed


@pytest.mark.parametrize("power", [1, 1.5, 2])
def test_all_take_about_the_same_time_after_a_few_deals(power):
    work = [1.0, 2.0, 3.0, 5.0]
    now, changed = _follow(power, work, noise=0.1)
    times = [c**power / w for w, c in zip(work, now, strict=True)]
    assert max(times) / min(times) < 2.0 < 5.0  # it was 5
    assert sum(now) == pytest.approx(len(now))
    assert changed
    assert max(changed) < 8


def test_equal_workers_keep_equal_shares_whatever_the_noise():
    assert _follow(1, [2.0] * 8, noise=0.12) == ((1.0,) * 8, [])


def test_who_has_no_speed_yet_keeps_its_capacity():
    assert capacities([1.0, 3.0], [0.0, 0.0]) == (0.5, 1.5)
    new, slow, fast = capacities([1.0] * 3, [0.0, 1.0, 4.0])
    assert slow < new < fast


def test_partitions_with_capacities():
    """Disjoint units in proportion; of fractions the largest stays."""
    axes = (Axis("a", 40),)
    assert with_capacities(Disjoint(2), (1.5, 0.5)).assign(axes, 3).held.sum(1).tolist() == [30, 10]
    assert with_capacities(Nested((0.2, 0.8)), (1.5, 0.5)).assign(axes, 3).held.sum(1).tolist() == [32, 11]
    assert with_capacities(Sampled((0.5, 0.5), seed=3), (1.0, 1.0)) == Sampled((0.5, 0.5), seed=3)
    with pytest.raises(ValueError, match="Cyclic: subnets cannot have the sizes"):
        with_capacities(Cyclic(2), (1.5, 0.5))
