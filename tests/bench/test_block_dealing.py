"""bench/accuracy/block_dealing.py: units are dealt once, each to as many workers as any other, but for one."""

import pytest

from skerry.plan import Axis


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.6, 1.0])
def test_units_stay_where_they_are_and_are_held_equally_often(load_script, fraction):
    once = load_script("accuracy/block_dealing.py").Once(4, fraction)
    axes = Axis("blocks", 8), Axis("heads", 4, start=8), Axis("hidden", 10, start=12)
    held = once.assign(axes, 0).held
    assert held.equal(once.assign(axes, 7).held)
    for axis in axes:
        own = held[:, axis.start : axis.start + axis.num_units]
        holders = own.sum(0)
        assert holders.min() >= 1
        assert holders.max() - holders.min() <= 1
        assert own.sum(1).unique().numel() == 1
        assert own[0].sum() == max(-(-axis.num_units // 4), int(fraction * axis.num_units + 0.5))
    assert once.share(axes, 0).sum() * 4 == held.sum()
