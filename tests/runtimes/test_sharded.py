"""The sharded store, all workers in one process: against ``aggregate_`` on full tensors, to the bit."""

import copy

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from mixed_tensors import all_same, any_assignment, assert_kept, copied, mixed_model, one_round, same, trained
from overlapping import Overlapping
from together import together
from torch import nn
from torch.nn import functional as F
from zoo import MODELS, Residual, blobs, mlp, sgd

from skerry import Blocks, Plan, ist, train
from skerry.algorithm import Algorithm
from skerry.algorithms import local_sgd
from skerry.experiments.models.mlp import MLP
from skerry.merge.calibrate import scale_
from skerry.model.tensors import named_tensors
from skerry.partitions import Assignment, Disjoint, Share
from skerry.plan import In, Out
from skerry.runtimes import Serial
from skerry.runtimes.distributed.local_exchange import round_at_random
from skerry.runtimes.runtime import RESTING, Beginning, Handover, Report
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import put_, take
from skerry.training import Test
from skerry.weights.source import FromModel

FEW = {"phases": (Phase.explicit, Phase.reuse, Phase.generate)}  # no shrinking: a seed has no simpler one


@settings(max_examples=5, **FEW)
@given(
    workers=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    chunk=st.sampled_from([16, 48, 64]),
    refused=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    sums=st.booleans(),  # as NCCL does, of what all hold
)
@example(4, 0.0, 64, [set()], 2595, True)  # all hold a part of a tensor, and some the rest
def test_any_assignments_and_refusals_give_what_aggregate_gives(workers, density, chunk, refused, seed, sums):
    model, plan, assignments = any_run(workers, density, len(refused), seed)
    start = start_of(model)
    expected = serially(model, plan, assignments, start, refused)

    def work(member):
        store = member.keep(beginning(model, plan, assignments[0], start=start))
        kept = [copied(store.shards())]
        for round, bad in enumerate(refused):
            member.at(round, "exchange")
            reports = one_round(store, [member.rank], assignments[round + 1], round, bad)
            assert [r.good for r in reports] == [w not in bad for w in range(workers)]
            kept.append(copied(store.shards()))
        return kept

    kept = together(workers, work, chunk=chunk, sums=sums)
    for round, full in enumerate(expected):
        assert_kept(plan, full, assignments[round], [each[round] for each in kept])


@settings(max_examples=4, **FEW)
@given(
    workers=st.integers(1, 4),
    density=st.sampled_from([0.5, 1.0]),
    refused=st.lists(st.sets(st.integers(0, 3)), min_size=2, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_what_arrives_late_turns_each_own_value_into_the_mean(workers, density, refused, seed):
    model, plan, assignments = any_run(workers, density, len(refused), seed)
    start = start_of(model)
    expected = serially(model, plan, assignments, start, refused)

    def work(member):
        runs = [
            (
                member.keep(beginning(model, plan, assignments[0], start=start)),
                [member.rank],
            )
        ]
        if member.rank == 0:
            runs.append((serial_store(model, plan, assignments, start), range(workers)))
        before = {}
        for round, bad in enumerate(refused):
            member.at(round, "exchange")
            for store, here in runs:
                late = {}
                one_round(store, here, assignments[round + 1], round, bad, overlap=late)
                shards = copied(store.shards())
                for w, (begun, missing) in late.items():
                    mark = f"began::{w}::"
                    own = {n.removeprefix(mark): t for n, t in shards.items() if n.startswith(mark)}
                    if round:
                        assert missing.keys() == before[store, w].keys()
                    for name, more in missing.items():
                        began = before[store, w][name]
                        assert name not in begun or same(begun[name], began)
                        eps = 5e-3 if more.dtype == torch.float16 else 1e-6
                        torch.testing.assert_close(began + more, expected[round][name], rtol=0, atol=eps)
                        assert w not in bad or name not in own or same(own[name], began)  # refused: the same again
                    before[store, w] = own
                if len(here) > 1:
                    assert all_same(expected[round + 1], {n: t for n, t in shards.items() if "began" not in n})

    together(workers, work)


def start_of(model):
    """What momenta and step counts of a model start with."""
    names = [name for name, _ in model.named_parameters()]
    return {f"{n}::exp_avg": torch.tensor([0.25]) for n in names} | {f"{n}::step": torch.tensor(0.0) for n in names}


def serial_store(model, plan, assignments, start):
    model = copy.deepcopy(model)  # it is trained in place
    return Serial().keep(beginning(model, plan, assignments[0], start=start))


@settings(max_examples=4, **FEW)
@given(
    workers=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.5, 1.0]),
    chunk=st.sampled_from([48, 4096]),
    seed=st.integers(0, 2**32),
)
def test_the_full_model_is_read_to_the_bit_and_reading_changes_nothing(workers, density, chunk, seed):
    model, plan, assignments = any_run(workers, density, 1, seed)
    share = Share.independent(assignments[0].share())
    expected = serially(model, plan, assignments, {}, [()])[1]
    scaled = copied(expected)
    for name in named_tensors(model):
        scale_(name, scaled[name], plan, share, {})

    def work(member):
        store = member.keep(beginning(model, plan, assignments[0]))
        one_round(store, [member.rank], assignments[1], 0)
        before, sent = copied(store.shards()), store.bytes_sent
        for _ in range(2):
            full = store.full(share)
            names = {n for n in named_tensors(model) if full.names(n)}
            assert names == named_tensors(model).keys()
            read = copied(dict(full.tensors()))
            assert all_same(copied(store.shards()), before)
            assert store.bytes_sent == sent
        return read

    assert all_same(together(workers, work, chunk=chunk)[0], {n: scaled[n] for n in named_tensors(model)})


@settings(max_examples=5, **FEW)
@given(workers=st.integers(2, 4), density=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 2**32))
def test_bf16_values_are_neighbours_and_the_same_for_all_holders(workers, density, seed):
    model, plan, assignments = any_run(workers, density, 1, seed)
    expected = serially(model, plan, assignments, {}, [()], draw=torch.randn)[1]

    def work(member):
        store = member.keep(beginning(model, plan, assignments[0]))
        one_round(store, [member.rank], assignments[1], 0, draw=torch.randn)
        return copied(store.shards())

    shards = together(workers, work, wire_format="bf16", chunk=64)
    # All holders have what the first holder has.
    got = {name: assembled(plan, name, tensor, assignments[1], shards) for name, tensor in expected.items()}
    assert_kept(plan, got, assignments[1], shards)
    # A value of one holder is rounded once, to a neighbour. Of several holders each value is, and then their mean.
    size = serially(model, plan, assignments, {}, [()], draw=lambda *a, **k: torch.randn(*a, **k).abs())[1]
    num_rounded = 0
    for name, tensor in expected.items():
        if tensor.dtype != torch.float32:
            torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=1e-12)
            continue
        several = num_holders(plan, name, tensor, assignments[0]) > 1
        towards, away = neighbours(tensor)
        assert (several | (got[name] == tensor) | (got[name] == towards) | (got[name] == away)).all(), name
        assert ((got[name] - tensor).abs() <= 2**-6 * size[name].abs()).all(), name
        num_rounded += int((got[name] != tensor).sum())
    assert num_rounded > 0


def beginning(model, plan, assignment, **more):
    return Beginning(model=model, plan=plan, source=FromModel(model), assignment=assignment, **more)


def any_run(workers, density, num_rounds, seed):
    torch.manual_seed(seed)
    model, plan = mixed_model()
    rng = torch.Generator().manual_seed(seed)
    return model, plan, [any_assignment(plan.num_units, workers, density, rng) for _ in range(num_rounds + 1)]


def serially(model, plan, assignments, start, refused, **more):
    """The full tensors at the start and after each round, by the serial store."""
    store = serial_store(model, plan, assignments, start)
    full = [copied(store.tensors)]
    for round, bad in enumerate(refused):
        one_round(store, range(assignments[0].num_workers), assignments[round + 1], round, bad, **more)
        full.append(copied(store.tensors))
    return full


def assembled(plan, name, like, assignment, shards):
    """The full tensor from owned parts and subnets; of several holders the first counts."""
    full, n = torch.empty_like(like), assignment.num_workers
    for worker, kept in enumerate(shards):
        if f"{RESTING}{name}" in kept:
            dim = next(d for d, dealt in enumerate(plan.row(name, like.shape)) if dealt is not None)
            size = like.shape[dim]
            index = torch.tensor([i for i in range(size) if i * n // size == worker], dtype=torch.int64)
            full.index_copy_(dim, index, kept[f"{RESTING}{name}"])
    for worker, kept in reversed(list(enumerate(shards))):
        if name in kept:
            cut = Cuts(plan, assignment.units(worker)).of(name, like.shape)
            put_(full, kept[name], cut)
    return full


def num_holders(plan, name, like, assignment):
    """How many workers hold each element."""
    count = torch.zeros(like.shape)
    for worker in range(assignment.num_workers):
        cut = Cuts(plan, assignment.units(worker)).of(name, like.shape)
        if cut is not None:
            put_(count, take(count, cut) + 1, cut)
    return count


def neighbours(tensor):
    """The bfloat16 values below and above (towards and away from zero), as float32."""
    bits = tensor.contiguous().view(torch.int32)
    towards = (bits & -(2**16)).view(torch.float32)
    away = torch.where(towards == tensor, towards, ((bits & -(2**16)) + 2**16).view(torch.float32))
    return towards, away


def test_rounding_at_random_gives_a_neighbour_and_keeps_exact_values():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5000, generator=rng) * torch.logspace(-42, 37, 5000)  # with subnormals
    rounded = round_at_random(x, rng)
    assert rounded.dtype == torch.bfloat16
    towards, away = neighbours(x)
    assert ((rounded.float() == towards) | (rounded.float() == away)).all()
    assert (rounded.float() == towards).any()
    assert (rounded.float() == away).any()
    fits = torch.cat([x.to(torch.bfloat16), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1.0]).to(torch.bfloat16)])
    assert same(round_at_random(fits.float(), rng), fits)
    assert round_at_random(torch.tensor([torch.nan, -torch.nan]), rng).isnan().all()
    assert same(round_at_random(x[:0], rng), x[:0].to(torch.bfloat16))


def test_a_finite_number_stays_finite():
    """Such as the -3.4e38 of an attention mask."""
    largest = torch.finfo(torch.float32).max
    assert round_at_random(torch.tensor([largest, -largest] * 50), torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize("x", [1.0 + 2**-9, -(1.0 + 3 * 2**-10), 0.1, -1e-30, 3.14159e20])
def test_rounding_at_random_is_unbiased(x):
    num, rng = 100_000, torch.Generator().manual_seed(1)
    x32 = torch.full((num,), x)
    towards, away = (t[0].double() for t in neighbours(x32))
    mean = round_at_random(x32, rng).double().mean()
    deviation = (away - towards).abs() / 2 / num**0.5  # at most
    assert (mean - x32[0].double()).abs() < 4 * deviation


def test_bytes_sent_are_the_bytes_due():
    model, plan = MLP([40, 48, 40, 10], norm=False), None
    plan = Plan.from_rules(model, {"layers.0": Out("a"), "layers.1": (In("a"), Out("b")), "out": In("b")})
    partition = Disjoint(3, reshuffle=0.5)
    assignments = [partition.assign(plan.axes, round) for round in range(3)]

    def work(member):
        store = member.keep(beginning(model, plan, assignments[0]))
        due = 0.0
        for round in range(2):
            reports = one_round(store, [member.rank], assignments[round + 1], round, state=False)
            due += reports[member.rank].bytes_due
        return store.bytes_sent, due

    exact, halved = (together(3, work, wire_format=wire) for wire in ("exact", "bf16"))
    for sent, due in exact:
        assert due <= sent <= 1.1 * due  # with padding
    for (sent, _), (due, _) in zip(halved, exact, strict=True):
        assert 0.45 * due < sent < 0.6 * due


def test_what_a_worker_holds_again_is_not_copied():
    model, plan = mixed_model()
    assignment = any_assignment(plan.num_units, 2, 0.0, torch.Generator().manual_seed(0))

    def work(member):
        store = member.keep(beginning(model, plan, assignment))
        tensors = trained(store.subnet(member.rank)[0], member.rank, 0, state=False)
        store.exchange([Handover(tensors, Report(member.rank, True, 1.0, 0.0, 0.0))], assignment)
        return {n for n, t in store.tensors.items() if t.data_ptr() != tensors[n].data_ptr() and t.numel()}

    assert together(2, work) == [set(), set()]


def test_a_worker_with_other_tensors_is_refused():
    model, plan, _ = MODELS["mlp"][0]()
    assignment = Disjoint(2).assign(plan.axes, 0)

    def work(member, change):
        store = member.keep(beginning(model, plan, assignment))
        tensors = trained(store.subnet(member.rank)[0], member.rank, 0)
        if member.rank == 1:
            change(tensors)
        store.exchange([Handover(tensors, Report(member.rank, True, 1.0, 0.0, 0.0))], assignment)

    def lose(tensors):
        tensors["layers.0.weight"] = tensors["layers.0.weight"][:-1]

    def widen(tensors):
        tensors["out.bias"] = tensors["out.bias"].double()

    with pytest.raises(ValueError, match=r"layers\.0\.weight\b.*\(5, 9\).*\(6, 9\)"):
        together(2, lambda member: work(member, lose))
    with pytest.raises(ValueError, match=r"out\.bias\b.*\btorch\.float64\b.*\btorch\.float32\b"):
        together(2, lambda member: work(member, widen))


@pytest.mark.parametrize("which", ["seed", "plan", "then"])
def test_workers_that_do_not_agree_are_refused_before_a_byte_is_sent(which):
    model, plan, _ = mlp()

    def work(member):
        odd_one = member.rank == 1
        own_plan = plan.without("h1") if which == "plan" and odd_one else plan
        now, then = (Disjoint(2, seed=s).assign(own_plan.axes, 0) for s in (0, 1))
        now = Disjoint(2, seed=5).assign(own_plan.axes, 0) if which == "seed" and odd_one else now
        store = member.keep(beginning(model, own_plan, now))
        one_round(store, [member.rank], now if which == "then" and odd_one else then, 0)

    with pytest.raises(ValueError, match="plan differs" if which == "plan" else "who holds what differs"):
        together(2, work)


class Forks(nn.Module):
    """Takes one path or another, depending on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        if x.sum() == 0:
            return self.a(x)
        return self.a(self.b(x)) if x.sum() < 0 else self.b(self.a(x))


@pytest.mark.parametrize("others", [0.0, -1.0])
def test_a_forward_that_depends_on_the_data_is_refused(others):
    model = Forks()
    plan = Plan.whole(model)

    def work(member):
        store = member.keep(beginning(model, plan, Assignment(torch.ones(2, 0, dtype=torch.bool))))
        store.full(torch.ones(0)).module(torch.full((2, 3), 1.0 if member.rank else others))

    with pytest.raises(ValueError, match=r"\bforward\b"):
        together(2, work)


def only_blocks():
    body = nn.Sequential(*(Residual(8, 6 + k) for k in range(6)))
    model = nn.Sequential(nn.Linear(9, 8), body, nn.Linear(8, 4))
    return model, Blocks("1.*", branch="down").plan(model, torch.randn(16, 9))


def nearly_all_core():
    model = MLP([9, 4, 4], norm=False)
    return model, Plan.from_rules(model, {"layers.0": Out("h"), "out": In("h")})


@pytest.mark.parametrize(
    ("build", "algorithm"),
    [
        (only_blocks, ist(3, local_steps=2)),  # a worker has tensors whole that calibration scales
        (nearly_all_core, ist(3, local_steps=2, core=0.75)),
        (lambda: mlp(hidden=(9, 7))[:2], Algorithm(name="o", partition=Overlapping(3, 3), local_steps=2)),
        (lambda: mlp(hidden=(9, 7))[:2], local_sgd(3, local_steps=2, overlap=1)),
    ],
    ids=["blocks", "core", "all", "late"],
)
def test_evaluation_between_rounds_changes_nothing(build, algorithm):
    def go(runtime):
        torch.manual_seed(1)
        model, plan = build()
        return train(
            model, F.cross_entropy, blobs(3), plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=3,
            test=Test(*next(iter(blobs(1).batches(0, 0, 1))), every=1), runtime=runtime,
        )  # fmt: skip

    serial = go(Serial())
    results = together(3, lambda member: (lambda r: (copied(dict(r.full.tensors())), r))(go(member)))
    for name, tensor in dict(serial.full.tensors()).items():
        torch.testing.assert_close(results[0][0][name], tensor)
    for _, result in results:
        assert result.score.loss == pytest.approx(serial.score.loss)
        assert result.score.accuracy == serial.score.accuracy
        assert torch.equal(result.state.trained, serial.state.trained)
        with pytest.raises(ValueError, match=r"result\.export\(folder\)"):
            _ = result.model
    expected = [record.score.loss for record in serial.history]
    for _, result in results:
        assert [record.score.loss for record in result.history] == pytest.approx(expected)
