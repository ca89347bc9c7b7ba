"""Dealing with a minimum, and warm-up: against what they promise, over random settings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skerry.partitions import Covering, Disjoint, Everything, Warmup
from skerry.plan import Axis


@st.composite
def settings(draw: st.DrawFn) -> tuple[Covering, tuple[Axis, ...]]:
    workers = draw(st.integers(1, 7))
    sizes = draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    least = draw(st.integers(1, min(sizes)))
    if least == 1:
        sizes = [max(size, workers) for size in sizes]
    axes = tuple(Axis(f"a{k}", size, start=sum(sizes[:k])) for k, size in enumerate(sizes))
    return Covering(workers, least, draw(st.integers(0, 3))), axes


@given(settings(), st.integers(0, 12))
def test_all_units_are_covered_evenly_and_everybody_has_the_minimum(drawn, round):
    partition, axes = drawn
    held = partition.assign(axes, round).held
    for axis in axes:
        mine = held[:, axis.start : axis.start + axis.num_units]
        holders, sizes = mine.sum(0), mine.sum(1)
        assert holders.min() >= 1
        assert holders.max() - holders.min() <= 1
        assert sizes.min() >= partition.min_units
        assert sizes.max() - sizes.min() <= 1
        # No more copies than the minimum asks for.
        even, more = divmod(axis.num_units, partition.num_workers)
        expected = [max(partition.min_units, even + (w < more)) for w in range(partition.num_workers)]
        assert sizes.tolist() == expected


@given(settings(), st.integers(0, 12))
def test_an_assignment_is_a_pure_function_of_seed_and_round(drawn, round):
    partition, axes = drawn
    alike = Covering(partition.num_workers, partition.min_units, partition.seed)
    alike.assign(axes, round + 1)
    assert torch.equal(partition.assign(axes, round).held, alike.assign(axes, round).held)


def test_other_rounds_and_seeds_deal_otherwise():
    axes = (Axis("a", 12), Axis("b", 12, start=12))
    held = [Covering(4, 5, seed).assign(axes, round).held for seed, round in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])
    assert not torch.equal(held[0][:, :12], held[0][:, 12:])


def test_the_share_is_the_mean_over_many_dealings():
    partition, axes = Covering(4, 2), (Axis("a", 5), Axis("b", 9, start=5))
    mean = torch.stack([partition.assign(axes, round).share() for round in range(2000)]).mean(0)
    share = partition.share(axes, 0)
    assert share.tolist() == [8 / 20] * 5 + [9 / 36] * 9
    torch.testing.assert_close(mean, share, atol=0.02, rtol=0)  # one round has .25 and .5 on axis a
    assert set(partition.assign(axes, 0).share()[:5].tolist()) == {0.25, 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_warm_up_is_everything_then_what_follows(seed):
    axes, then = (Axis("a", 8),), Disjoint(4, seed)
    partition = Warmup(3, then)
    assert (partition.num_workers, partition.covers) == (4, True)
    for round in range(6):
        expected = Everything(4) if round < 3 else then
        assert torch.equal(partition.assign(axes, round).held, expected.assign(axes, round).held)
        assert torch.equal(partition.share(axes, round), expected.share(axes, round))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Covering(0), r"num_workers\b.*\b0\b"),
        (lambda: Covering(2, 0), r"min_units\b.*\b0\b"),
        (lambda: Covering(2, 4).assign((Axis("blocks", 3),), 0), r"(?=.*\b3\b)(?=.*\b4\b).*'blocks'(?!.*workers)"),
        (lambda: Covering(4).assign((Axis("blocks", 3),), 0), r"(?=.*\b3\b)(?=.*\b4\b)(?=.*workers).*'blocks'"),
        (lambda: Warmup(-1, Everything(2)), r"\brounds\b.*-1\b"),
    ],
)
def test_wrong_settings_are_refused(make, names):
    with pytest.raises(ValueError, match=names):
        make()
