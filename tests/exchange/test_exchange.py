"""Moves and transfers between two rounds: against a loop over the elements of each tensor."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlapping import Overlapping
from zoo import CASES, mlp

from skerry.exchange.moves import moves
from skerry.exchange.owners import owned_range, owner_dim
from skerry.exchange.routes import collected, traffic, transfers
from skerry.model.tensors import named_tensors
from skerry.partitions import Assignment, Disjoint, Everything, Sampled
from skerry.subnet.index import cut_shape


@cache
def built(number):
    """A case's plan and the full sizes of its tensors, with momenta of one tensor and a step count."""
    torch.manual_seed(0)
    model, plan, _ = CASES[number].build()
    sizes = {n: torch.empty_like(t, device="meta") for n, t in named_tensors(model).items()}
    name = next(iter(plan.dims), next(iter(sizes)))
    sizes[f"{name}::exp_avg"] = torch.empty_like(sizes[name])
    sizes[f"{name}::step"] = torch.empty((), device="meta")
    return plan, sizes


@st.composite
def partitions(draw, workers):
    seed = draw(st.integers(0, 1000))
    share = st.sampled_from([0.0, 0.1, 0.4, 1.0])
    weights = st.tuples(*[st.integers(1, 5)] * workers)
    return draw(
        st.one_of(
            st.builds(
                Disjoint, st.just(workers), st.just(seed), share, st.one_of(st.none(), weights),
                st.sampled_from([0.0, 0.3, 1.0]),
            ),
            st.builds(Overlapping, st.just(workers), st.integers(1, workers), st.just(seed)),
            st.builds(Everything, st.just(workers)),
        )
    )  # fmt: skip


@st.composite
def boundaries(draw):
    """A plan, sizes, and two assignments: by one partition, by two, or drawn at random."""
    plan, sizes = built(draw(st.integers(0, len(CASES) - 1)))
    workers, round = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    rule = draw(partitions(workers))
    now, then = (rule.assign(plan.axes, round + k) for k in (0, 1))
    if draw(st.booleans()):
        then = draw(partitions(workers)).assign(plan.axes, round + 1)
    if draw(st.booleans()):
        rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        held = torch.rand(workers, plan.num_units, generator=rng) < draw(st.sampled_from([0.0, 0.5]))
        held[torch.randint(0, workers, (plan.num_units,), generator=rng), torch.arange(plan.num_units)] = True
        now = Assignment(held)
    return plan, sizes, now, then


def who_has(plan, name, shape, assignment):
    """For each worker and element whether the worker has it, bool (workers, *shape)."""
    has = np.ones((assignment.num_workers, *shape), dtype=bool)
    for w in range(assignment.num_workers):
        block = plan.block_of(name)
        has[w] &= block is None or bool(assignment.held[w, block])
        for d, dim in enumerate(plan.row(name, shape)):
            if dim is not None:
                mine = [unit < 0 or bool(assignment.held[w, unit]) for unit in dim.units.tolist()]
                has[w] &= np.array(mine, dtype=bool).reshape([-1 if k == d else 1 for k in range(len(shape))])
    return has


def owners(plan, name, shape, workers):
    """The owner rank of each element; -1: it has none."""
    dealt = [d for d, dim in enumerate(plan.row(name, shape)) if dim is not None]
    if len(dealt) + (plan.block_of(name) is not None) < 2:
        return np.full(shape, -1)
    size = shape[dealt[0]]
    along = np.array([i * workers // size for i in range(size)])
    return np.broadcast_to(along.reshape([-1 if k == dealt[0] else 1 for k in range(len(shape))]), shape)


def at(indices, shape):
    return np.ix_(*(np.arange(s) if i is None else i.ids.numpy() for i, s in zip(indices, shape, strict=True)))


@settings(max_examples=20)
@given(boundaries())
def test_every_element_with_a_holder_is_in_one_move(boundary):
    plan, sizes, now, then = boundary
    seen = {name: np.zeros(size.shape, dtype=int) for name, size in sizes.items()}
    table = {}
    for name, size in sizes.items():
        has, will_have = (who_has(plan, name, size.shape, a) for a in (now, then))
        table[name] = has, will_have, owners(plan, name, size.shape, now.num_workers)
    for move in moves(plan, sizes, now, then):
        has, will_have, owner = table[move.name]
        index = at(move.cut, sizes[move.name].shape)
        seen[move.name][index] += 1
        for w in range(now.num_workers):
            assert (has[w][index] == (w in move.holders)).all()
            assert (will_have[w][index] == (w in move.next_holders)).all()
        assert (owner[index] == (-1 if move.owner is None else move.owner)).all()
        for index in move.cut:
            assert index is None or (index.ids[1:] > index.ids[:-1]).all()
    for name, (has, will_have, _) in table.items():
        assert (seen[name] == (has.any(0) | will_have.any(0))).all(), name


def concerns(move, worker):
    """Whether a worker has the elements now or will have them."""
    unassigned = not move.holders or not move.next_holders
    return worker in move.holders or worker in move.next_holders or (unassigned and worker == move.owner)


@settings(max_examples=20)
@given(boundaries())
def test_a_worker_that_asks_for_its_own_moves_gets_them_in_the_order_of_all(boundary):
    plan, sizes, now, then = boundary
    everybodys = list(moves(plan, sizes, now, then))
    for worker in range(now.num_workers):
        own, expected = list(moves(plan, sizes, now, then, worker)), [m for m in everybodys if concerns(m, worker)]
        assert [about(move) for move in own] == [about(move) for move in expected]


def about(move):
    indices = [None if index is None else index.ids.tolist() for index in move.cut]
    return move.name, indices, move.holders, move.next_holders, move.owner


@settings(max_examples=20)
@given(boundaries(), st.booleans())
def test_each_element_arrives_once_where_it_has_to_and_nowhere_else(boundary, average):
    plan, sizes, now, then = boundary
    n = now.num_workers
    stages = transfers(list(moves(plan, sizes, now, then)), sizes, average=average)
    came = {name: np.zeros((2, n, n, *size.shape), dtype=int) for name, size in sizes.items()}
    for stage, some in enumerate((stages.first, stages.second)):
        for transfer in some:
            assert transfer.source != transfer.target
            name = transfer.move.name
            index = at(transfer.cut, sizes[name].shape)
            came[name][(stage, transfer.source, transfer.target, *index)] += 1
    for name, size in sizes.items():
        has, will_have = (who_has(plan, name, size.shape, a) for a in (now, then))
        owner = owners(plan, name, size.shape, n)
        for e in np.ndindex(*size.shape):
            holders, targets = ({w for w in range(n) if x[(w, *e)]} for x in (has, will_have))
            first, second = ({(s, t): int(c) for (s, t), c in np.ndenumerate(a[(..., *e)]) if c} for a in came[name])
            assert all(count == 1 for count in (*first.values(), *second.values()))
            if not holders and not targets:
                assert not first
                assert not second
                continue
            targets = targets or {int(owner[e])}
            if average and len(holders) > 1:
                collector = {t for _, t in first}.pop()
                assert collector in holders
                assert set(first) == {(w, collector) for w in holders - {collector}}
                assert set(second) == {(collector, t) for t in targets - {collector}}
            else:
                sources = holders or {int(owner[e])}
                assert {t for _, t in first} == targets - sources
                assert {s for s, _ in first} <= sources
                assert len({s for s, _ in first}) <= 1
                assert not second


@settings(max_examples=20)
@given(boundaries())
def test_holders_share_the_work_of_collecting(boundary):
    plan, sizes, now, then = boundary
    for move in moves(plan, sizes, now, then):
        if len(move.holders) > 1:
            shape = sizes[move.name].shape
            seen = np.zeros(shape, dtype=int)
            numbers = []
            for collector, indices in collected(move, shape):
                assert collector in move.holders
                seen[at(indices, shape)] += 1
                numbers.append(cut_shape(shape, indices).numel())
            expected = np.zeros(shape, dtype=int)
            expected[at(move.cut, shape)] = 1
            assert (seen == expected).all()
            total = cut_shape(shape, move.cut).numel()
            longest = max((s if i is None else len(i) for i, s in zip(move.cut, shape, strict=True)), default=1)
            if total and longest >= len(move.holders):
                assert len(numbers) == len(move.holders)
                assert max(numbers) - min(numbers) <= total // longest


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 8, 31])
def test_owned_ranges_divide_a_dim(size, workers):
    runs = [range(*owned_range(size, worker, workers)) for worker in range(workers)]
    assert [i for run in runs for i in run] == list(range(size))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    for worker, run in enumerate(runs):
        assert all(i * workers // size == worker for i in run)


def test_only_tensors_of_two_dealt_dims_have_owners():
    plan, sizes = built([case.name for case in CASES].index("mlp"))
    found = {name: owner_dim(plan, name, size.shape) for name, size in sizes.items()}
    assert {name for name, dim in found.items() if dim is not None} == {"layers.1.weight"}
    for number in range(len(CASES)):
        plan, sizes = built(number)
        for name, size in sizes.items():
            none = bool((owners(plan, name, size.shape, 2) == -1).all())
            assert (owner_dim(plan, name, size.shape) is None) == none


def test_an_unassigned_unit_is_refused_where_there_is_no_owner():
    plan, sizes = built([case.name for case in CASES].index("mlp"))
    now = Disjoint(2).assign(plan.axes, 0)
    nobody = Assignment(now.held.clone())
    nobody.held[:, 3] = False
    with pytest.raises(ValueError, match=r"layers\.0\.weight"):
        list(moves(plan, sizes, now, nobody))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_where_units_may_be_unassigned_every_dealt_tensor_has_owners(number):
    plan, sizes = built(number)
    if plan.blocks:
        return
    plan = replace(plan, may_be_unassigned=True)
    for name, size in sizes.items():
        dealt = [d for d, dim in enumerate(plan.row(name, size.shape)) if dim is not None]
        assert owner_dim(plan, name, size.shape) == (dealt[0] if dealt else None)
    now, then = (Sampled((0.4, 0.3, 0.2)).assign(plan.axes, round) for round in range(2))
    counted = sent(plan, sizes, now, then)[1]
    unassigned = [move for move in moves(plan, sizes, now, then) if not move.next_holders]
    assert unassigned
    assert all(move.owner is not None for move in unassigned)
    assert counted.sum() == pytest.approx(float(traffic(plan, sizes, now, then).sum()), rel=0.2)


def wide():
    model, plan, _ = mlp(norm=False, hidden=(256, 256, 256))
    return plan, named_tensors(model)


def sent(plan, sizes, now, then):
    """Bytes by name, and by source and target."""
    stages = transfers(list(moves(plan, sizes, now, then)), sizes)
    by_name, by_pair = dict.fromkeys(sizes, 0), torch.zeros(now.num_workers, now.num_workers, dtype=torch.float64)
    for transfer in (*stages.first, *stages.second):
        size = sizes[transfer.move.name]
        num_bytes = cut_shape(size.shape, transfer.cut).numel() * size.element_size()
        by_name[transfer.move.name] += num_bytes
        by_pair[transfer.source, transfer.target] += num_bytes
    assert by_pair.sum(1).tolist() == [stages.bytes_from(w, sizes) for w in range(now.num_workers)]
    return by_name, by_pair


def test_a_slow_reshuffle_saves_most_of_the_bytes_between_two_axes_too():
    plan, sizes = wide()
    full, slow = (
        sent(plan, sizes, *(p.assign(plan.axes, round) for round in (1, 2)))[0]
        for p in (Disjoint(4), Disjoint(4, reshuffle=0.1))
    )
    between = [name for name, size in sizes.items() if owner_dim(plan, name, size.shape) is not None]
    assert between == ["layers.1.weight", "layers.2.weight"]
    for names in (between, list(sizes)):
        assert sum(slow[name] for name in names) < sum(full[name] for name in names) / 5
    assert all(slow[name] > 0 for name in between)


def test_what_stays_does_not_move_and_replicas_cost_a_ring():
    plan, sizes = wide()
    same = Disjoint(4).assign(plan.axes, 0)
    by_name, _ = sent(plan, sizes, same, same)
    assert by_name == {name: 2 * 3 * t.nbytes if name not in plan.dims else 0 for name, t in sizes.items()}
    everything = Everything(4).assign(plan.axes, 0)
    by_name, by_pair = sent(plan, sizes, everything, everything)
    assert by_name == {name: 2 * 3 * t.nbytes for name, t in sizes.items()}
    total = sum(t.nbytes for t in sizes.values())
    assert by_pair.sum(1).tolist() == pytest.approx([2 * 3 / 4 * total] * 4, rel=0.02)


@settings(max_examples=20)
@given(boundaries())
def test_traffic_is_that_of_all_transfers(boundary):
    plan, sizes, now, then = boundary
    _, by_pair = sent(plan, sizes, now, then)
    predicted = traffic(plan, sizes, now, then)
    one = {name: who_has(plan, name, size.shape, now).sum(0).max(initial=0) <= 1 for name, size in sizes.items()}
    alone = {name: size for name, size in sizes.items() if one[name]}
    _, exact = sent(plan, alone, now, then)
    torch.testing.assert_close(traffic(plan, alone, now, then), exact)
    assert predicted.diagonal().sum() == 0
    # Which of several holders collects is not predicted: between the least and the most it could be.
    number = sum(size.nbytes for name, size in sizes.items() if not one[name]) * 2 * now.num_workers
    assert abs(float(predicted.sum() - by_pair.sum())) <= number


@pytest.mark.parametrize(
    "partition",
    [Overlapping(4, 2), Overlapping(4, 3), Disjoint(4, core=0.3), Disjoint(4, reshuffle=0.1), Everything(4)],
)
def test_traffic_is_right_for_wide_layers(partition):
    plan, sizes = wide()
    now, then = (partition.assign(plan.axes, round) for round in (1, 2))
    _, by_pair = sent(plan, sizes, now, then)
    predicted = traffic(plan, sizes, now, then)
    torch.testing.assert_close(predicted.sum(1), by_pair.sum(1), rtol=0.05, atol=0)
    assert math.isclose(predicted.sum(), by_pair.sum(), rel_tol=0.02)
