"""Partitions: checked against what disjoint, overlapping and reshuffled dealing must mean, over random settings."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from overlapping import Overlapping

from skerry.partitions import Covering, Cyclic, Disjoint, Everything, Nested, Rolling, Sampled, Share
from skerry.plan import Axis


@st.composite
def axes_and_workers(draw: st.DrawFn) -> tuple[tuple[Axis, ...], int]:
    workers = draw(st.integers(1, 7))
    axes, start = [], 0
    for k in range(draw(st.integers(1, 3))):
        size = draw(st.integers(workers, 40))
        axes.append(Axis(f"a{k}", size, start=start))
        start += size
    return tuple(axes), workers


rounds = st.integers(0, 12)
fractions = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99, 1.0])


@given(axes_and_workers(), rounds, fractions, st.integers(0, 3))
def test_disjoint_gives_each_unit_one_holder_and_each_worker_a_unit(drawn, round, reshuffle, seed):
    axes, workers = drawn
    held = Disjoint(workers, seed, reshuffle=reshuffle).assign(axes, round).held
    assert (held.sum(0) == 1).all()
    for axis in axes:
        sizes = held[:, axis.start : axis.start + axis.num_units].sum(1)
        assert sizes.max() - sizes.min() <= 1


@given(axes_and_workers(), rounds, fractions, st.data())
def test_capacities_set_the_sizes_to_within_a_unit(drawn, round, reshuffle, data):
    axes, workers = drawn
    capacities = tuple(data.draw(st.floats(0.1, 10)) for _ in range(workers))
    held = Disjoint(workers, 1, reshuffle=reshuffle, capacities=capacities).assign(axes, round).held
    assert (held.sum(0) == 1).all()
    for axis in axes:
        sizes = held[:, axis.start : axis.start + axis.num_units].sum(1)
        ideal = torch.tensor(capacities) / sum(capacities) * axis.num_units
        assert (sizes >= 1).all()
        if (ideal >= 1).all():
            assert ((sizes - ideal).abs() < 1 + 1e-6 + (ideal < 2).sum()).all()


def test_capacities_by_hand():
    held = Disjoint(3, capacities=(1, 2, 5)).assign((Axis("a", 16),), 0).held
    assert held.sum(1).tolist() == [2, 4, 10]


@given(axes_and_workers(), rounds, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_the_core_is_on_every_worker_and_the_rest_on_one(drawn, round, core):
    axes, workers = drawn
    num_core = [int(core * a.num_units + 0.5) for a in axes]
    if any(core == 0 and a.num_units < workers for a in axes):
        return
    held = Disjoint(workers, core=core).assign(axes, round).held
    for axis, k in zip(axes, num_core, strict=True):
        mine = held[:, axis.start : axis.start + axis.num_units]
        assert mine[:, :k].all()
        assert (mine[:, k:].sum(0) == 1).all()


@given(axes_and_workers(), rounds, fractions)
def test_an_assignment_is_a_pure_function_of_seed_and_round(drawn, round, reshuffle):
    axes, workers = drawn
    forward = Disjoint(workers, 3, reshuffle=reshuffle)
    seen = [forward.assign(axes, r).held for r in range(round + 1)]
    alone = Disjoint(workers, 3, reshuffle=reshuffle).assign(axes, round).held
    assert torch.equal(seen[-1], alone)
    assert torch.equal(forward.assign(axes, 0).held, seen[0])  # and going back works


@given(axes_and_workers(), rounds, st.booleans())
def test_cyclic_dealing_hands_all_on_or_nothing(drawn, round, moves):
    axes, workers = drawn
    going = Cyclic(workers, moves)
    assert (going.assign(axes, round).held.sum(0) == 1).all()
    for worker in range(workers):
        there = going.assign(axes, round).units((worker + round * moves) % workers)
        assert torch.equal(there, going.assign(axes, 0).units(worker))


def test_units_that_are_together_stay_together_in_cyclic_dealing():
    axes = (Axis("a", 7), Axis("b", 9, start=7))
    held = torch.stack([Cyclic(3).assign(axes, r).held for r in range(3)])
    together = held.double().mT @ held.double()  # in each round the same pairs share a worker
    assert torch.equal(together[0], together[1])
    assert torch.equal(together[0], together[2])


@pytest.mark.parametrize("reshuffle", [0.03, 0.1, 0.5, 1.0])
def test_the_expected_fraction_changes_hands(reshuffle):
    workers, axis = 4, Axis("a", 200)
    partition = Disjoint(workers, 0, reshuffle=reshuffle)
    owners = [partition.assign((axis,), r).held.long().argmax(0) for r in range(101)]
    moved = sum((a != b).double().mean().item() for a, b in pairwise(owners)) / 100
    assert moved == pytest.approx(reshuffle * (1 - 1 / workers), rel=0.1)


def test_no_reshuffle_never_deals_again():
    partition = Disjoint(3, reshuffle=0.0)
    axes = (Axis("a", 10),)
    assert torch.equal(partition.assign(axes, 0).held, partition.assign(axes, 9).held)


@given(axes_and_workers(), rounds, st.data())
def test_overlapping_gives_each_unit_its_copies(drawn, round, data):
    axes, workers = drawn
    copies = data.draw(st.integers(1, workers))
    assignment = Overlapping(workers, copies).assign(axes, round)
    assert (assignment.held.sum(0) == copies).all()
    assert torch.allclose(assignment.share(), torch.tensor(copies / workers, dtype=torch.float64))


parts = st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5).map(tuple)


@given(axes_and_workers(), rounds, parts, st.sampled_from([Sampled, Rolling, Nested]))
def test_parts_are_as_large_as_the_fractions_say(drawn, round, fractions, kind):
    axes, _ = drawn
    held = kind(fractions).assign(axes, round).held
    for axis in axes:
        sizes = held[:, axis.start : axis.start + axis.num_units].sum(1).tolist()
        assert sizes == [max(1, int(fraction * axis.num_units + 0.5)) for fraction in fractions]


@pytest.mark.parametrize(
    "partition",
    [Sampled((0.25, 0.6)), Rolling((0.25, 0.6)), Rolling((0.3, 0.3), 7), Disjoint(3, core=0.2),
     Disjoint(2, reshuffle=0.5), Overlapping(3, 2), Everything(2)],
)  # fmt: skip
def test_the_share_of_a_unit_is_how_often_a_worker_holds_it(partition):
    axes = (Axis("a", 10), Axis("b", 20, start=10))
    rounds = range(400)  # turns of every window
    seen = sum(partition.assign(axes, round).held.double().mean(0) for round in rounds) / len(rounds)
    assert torch.allclose(seen, partition.share(axes, 0), atol=0.1 if isinstance(partition, Sampled) else 1e-9)
    assert partition.share(axes, 0).dtype == torch.float64


@pytest.mark.parametrize(
    "partition",
    [Disjoint(3), Disjoint(3, capacities=(3, 1, 1)), Disjoint(4, core=0.3), Disjoint(10), Sampled((0.3, 0.5)),
     Covering(4, 3), Everything(2), Nested((0.3, 0.6))],
)  # fmt: skip
def test_the_factor_of_a_pair_is_how_often_a_subnet_with_one_unit_has_the_other(partition):
    axes = (Axis("a", 10), Axis("b", 20, start=10))
    rounds, units = range(3000), torch.arange(30)
    held = torch.stack([partition.assign(axes, round).held for round in rounds]).flatten(0, 1).double()
    seen = (held.mT @ held) / held.sum(0)[:, None]  # given the unit of the row
    factors = Share.of(partition, axes, 0).factors(units, units)
    known = held.any(0) if isinstance(partition, Nested) else torch.ones(30, dtype=torch.bool)
    if isinstance(partition, Nested):  # the full model is the widest net
        assert torch.equal(factors, known.double().expand(30, -1))
    else:
        assert torch.allclose(seen, factors, atol=0.06)
        assert seen.mean() == pytest.approx(float(factors.mean()), abs=0.005)


def test_workers_draw_parts_of_their_own_and_new_ones_each_round():
    axes = (Axis("a", 40),)
    held = [Sampled((0.5, 0.5), seed=1).assign(axes, round).held for round in range(2)]
    assert not torch.equal(held[0][0], held[0][1])
    assert not torch.equal(held[0], held[1])
    assert torch.equal(held[0], Sampled((0.5, 0.5), seed=1).assign(axes, 0).held)


def test_a_window_rolls_on_and_around():
    axes = (Axis("a", 5, start=0),)
    held = [Rolling((0.6,), step=2).assign(axes, round).held[0].long().tolist() for round in range(3)]
    assert held == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1]]


def test_nested_parts_are_the_first_units():
    held = Nested((1.0, 0.4)).assign((Axis("a", 5),), 7).held
    assert Nested((0.2, 0.6)).share((Axis("a", 5),), 0).tolist() == [1, 1, 1, 0, 0]  # the largest worker's net
    assert held.long().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize("make", [Sampled, Rolling, Nested])
@pytest.mark.parametrize("fractions", [(), (0.0, 0.5), (1.5,)])
def test_fractions_out_of_range_are_refused(make, fractions):
    with pytest.raises(ValueError, match="fractions") as error:
        make(fractions)
    assert str(fractions) in str(error.value)


@given(axes_and_workers(), rounds)
def test_everything_is_everywhere(drawn, round):
    axes, workers = drawn
    assert Everything(workers).assign(axes, round).held.all()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Disjoint(0), r"num_workers\b.*\b0\b"),
        (lambda: Disjoint(2, reshuffle=1.5), r"reshuffle\b.*\b1\.5\b"),
        (lambda: Cyclic(0), r"num_workers\b.*\b0\b"),
        (lambda: Disjoint(2, core=-0.1), r"core\b.*-0\.1\b"),
        (lambda: Disjoint(2, capacities=(1.0,)), r"(?=.*\b1\b)(?=.*\b2\b).*capacities"),
        (lambda: Disjoint(2, capacities=(1.0, 0.0)), r"capacities\b.*\(1\.0, 0\.0\)"),
        (lambda: Overlapping(2, 3), r"copies\b.*\b3\b"),
        (lambda: Disjoint(4).assign((Axis("h0", 3),), 0), r"(?=.*\b3\b)(?=.*\b4\b).*'h0'"),
        (lambda: Overlapping(4, 2).assign((Axis("h0", 3),), 0), r"(?=.*\b3\b)(?=.*\b4\b).*'h0'"),
    ],
)
def test_wrong_settings_are_refused(make, names):
    with pytest.raises(ValueError, match=names):
        make()
