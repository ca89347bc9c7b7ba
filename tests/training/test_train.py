"""The round loop: against a plain PyTorch loop, against properties every algorithm must have, and on failures."""

import copy
import math
from dataclasses import replace
from itertools import cycle, pairwise

import pytest
import torch
from together import together
from torch import nn
from torch.nn import functional as F
from zoo import METHODS, Residual, blobs, blocks, cnn, images, mlp

from skerry import Blocks, Checkpoints, cosine, ist, narrow, relay, train
from skerry.algorithm import Algorithm
from skerry.algorithms import local_sgd, single
from skerry.checkpoint import CheckpointError
from skerry.model.tensors import named_tensors
from skerry.partitions import Everything
from skerry.runtimes import Serial
from skerry.runtimes.runtime import Handover
from skerry.runtimes.whole_model import WholeModel
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import take
from skerry.trained import Given
from skerry.training import Test, TheoryWarning, TrainingFailed, constant
from skerry.weights import FromInitializer

OPTIMIZERS = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), 1e-2),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), 1e-3, momentum=0.5),
    "adagrad": lambda net: torch.optim.Adagrad(net.parameters(), 1e-2, initial_accumulator_value=0.1),
    "rprop": lambda net: torch.optim.Rprop(net.parameters(), 1e-3),
    "adafactor": lambda net: torch.optim.Adafactor(net.parameters(), 1e-2),
}

ALGORITHMS = {name: method.algorithm for name, method in METHODS.items() if name != "single"}


def run(algorithm, *, build=mlp, rounds=3, optimizer="sgd", **more):
    torch.manual_seed(1)
    model, plan, _ = build()
    settings = {"schedule": cosine, **more}
    data = settings.pop("data", None) or blobs(algorithm.partition.num_workers)
    return model, train(
        model,
        settings.pop("loss_fn", F.cross_entropy),
        data,
        plan=plan,
        algorithm=algorithm,
        optimizer=OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer,
        num_rounds=rounds,
        **settings,
    )


@pytest.mark.parametrize("refused", [False, True])
def test_with_overlap_workers_begin_with_their_own_values_and_are_corrected_later(refused):
    rounds, steps, overlap = 4, 3, 2

    ((_, bad_labels),) = blobs(2).batches(0, steps, 1)

    def loss_fn(output, y):
        return F.cross_entropy(output, y) * (math.nan if refused and y.equal(bad_labels) else 1)

    model, _ = run(
        local_sgd(2, local_steps=steps, overlap=overlap), build=lambda: mlp(norm=False), rounds=rounds,
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1), schedule=constant, verify=False, loss_fn=loss_fn,
    )  # fmt: skip
    torch.manual_seed(1)
    plain, _, _ = mlp(norm=False)
    mean = [p.detach().double() for p in plain.parameters()]
    own = [mean, mean]
    for round in range(rounds):
        ends = []
        for w in range(2):
            values = [p.clone() for p in own[w]]
            if refused and (w, round) == (0, 1):
                ends.append(values)
                continue
            for step, (x, y) in enumerate(blobs(2).batches(w, round * steps, steps)):
                for p, value in zip(plain.parameters(), values, strict=True):
                    p.data = value.float().requires_grad_().data
                plain.zero_grad()
                F.cross_entropy(plain(x), y).backward()
                values = [v - 0.1 * p.grad for v, p in zip(values, plain.parameters(), strict=True)]
                if step + 1 == overlap:
                    values = [v + m - o for v, m, o in zip(values, mean, own[w], strict=True)]
            ends.append(values)
        good = ends[1:] if refused and round == 1 else ends
        mean = [sum(values) / len(values) for values in zip(*good, strict=True)]
        own = ends
    for p, value in zip(model.parameters(), mean, strict=True):
        torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", [mlp, lambda: mlp(norm=False)], ids=["norm", "plain"])
def test_one_worker_with_everything_is_bit_equal_to_a_plain_loop(optimizer, build):
    rounds, steps = 4, 7
    model, _ = run(single(local_steps=steps), build=build, rounds=rounds, optimizer=optimizer)
    torch.manual_seed(1)
    plain, _, _ = build()
    opt = OPTIMIZERS[optimizer](plain)
    rate = opt.param_groups[0]["lr"]
    for step, (x, y) in enumerate(blobs(1).batches(0, 0, rounds * steps)):
        opt.param_groups[0]["lr"] = rate * cosine(step / (rounds * steps))
        opt.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        opt.step()
    for (name, a), b in zip(named_tensors(model).items(), named_tensors(plain).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("name", "optimizer"), list(zip(ALGORITHMS, cycle(["sgd", "adamw"]), strict=False)))
def test_every_held_element_advances_and_others_keep_their_bits(name, optimizer):
    algorithm = ALGORITHMS[name]
    torch.manual_seed(1)
    model, plan, _ = mlp()
    before = {n: t.clone() for n, t in named_tensors(model).items()}
    _, result = run(algorithm, rounds=1, optimizer=optimizer)
    after = {n: t for n, t in result.store.shards().items() if n in named_tensors(model)}
    if type(algorithm.trains) is not Given:
        assert all(torch.isfinite(t).all() for t in after.values())
        return
    assignment = algorithm.partition.assign(plan.axes, 0)
    for tensor_name, tensor in after.items():
        if tensor_name.endswith("num_batches_tracked"):
            assert tensor == algorithm.local_steps
            continue
        held = torch.zeros(tensor.shape, dtype=torch.bool)
        for worker in range(assignment.num_workers):
            mine = torch.ones(tensor.shape, dtype=torch.bool)
            for d, dealt in enumerate(plan.dims.get(tensor_name, ())):
                if dealt is not None:
                    mine &= assignment.held[worker][dealt.units].view(
                        [-1 if k == d else 1 for k in range(tensor.dim())]
                    )
            held |= mine
        changed = tensor != before[tensor_name]
        assert not changed[~held].any(), tensor_name
        # A dead ReLU or a feature that is zero may keep a single weight where it was; nearly all must move.
        assert changed[held].double().mean() > 0.95, tensor_name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns_and_its_records_add_up(name):
    test = next(iter(blobs(1, samples=600, batch=600, seed=5).batches(0, 0, 1)))
    _, result = run(ALGORITHMS[name], rounds=13, test=Test(*test, every=5))
    records = result.history
    assert result.score.accuracy > 0.5  # four classes
    assert [r.round for r in records] == list(range(13))
    assert [r.round for r in records if r.score] == [4, 9, 12]
    for a, b in pairwise(records):
        assert all(b.totals[k] >= a.totals[k] for k in a.totals)
        assert b.units_covered >= a.units_covered
    if ALGORITHMS[name].partition.covers:
        assert records[-1].units_covered == 1.0
    assert (records[-1].totals["bytes_due"] > 0) == (not name.startswith("ensemble"))
    if name not in ("ist-uneven-travel", "fedrolex", "heterofl"):  # the largest worker's and the mean are the same
        assert records[-1].totals["flop"] == pytest.approx(13 * 4 * result.step_cost.flop, rel=0.2)


def test_a_convolutional_net_trains_too():
    test = next(iter(images(1).batches(0, 0, 1)))
    _, result = run(ist(3, local_steps=5), build=cnn, rounds=12, data=images(3), test=test)
    assert result.score.accuracy > 0.6


def test_units_that_were_trained_are_counted():
    _, result = run(ist(3, local_steps=1, core=0.5), rounds=4)
    counts = result.state.trained
    assert set(counts.tolist()) == {4, 12}  # one holder a round, or all three


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_travelling_momenta_have_the_places_of_their_elements(optimizer):
    model, result = run(ALGORITHMS["ist-uneven-travel"], optimizer=optimizer)
    key = {"sgd": "momentum_buffer", "adamw": "exp_avg"}[optimizer]
    state = {n: t for n, t in result.store.shards().items() if n.endswith(key)}
    assert {n: t.shape for n, t in state.items()} == {f"{n}::{key}": p.shape for n, p in model.named_parameters()}


def test_where_nothing_is_shared_and_nothing_moves_travelling_momenta_make_rounds_invisible():
    class NoShared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(9, 6, bias=False), nn.Linear(6, 4, bias=False)

        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    from skerry import Plan
    from skerry.plan import In, Out

    def build():
        model = NoShared()
        return model, Plan.from_rules(model, {"a": Out("h"), "b": In("h")}), None

    for optimizer in ("sgd", "adamw"):
        results = [
            run(
                ist(2, local_steps=steps, reshuffle=0.0, optimizer_state="travel"),
                build=build, rounds=12 // steps, optimizer=optimizer,
            )
            for steps in (12, 3)
        ]  # fmt: skip
        for (name, a), b in zip(
            named_tensors(results[0][0]).items(), named_tensors(results[1][0]).values(), strict=True
        ):
            assert torch.equal(a, b), name
        reset, _ = run(ist(2, local_steps=3, reshuffle=0.0), build=build, rounds=4, optimizer=optimizer)
        assert not torch.equal(named_tensors(reset)["a.weight"], named_tensors(results[0][0])["a.weight"])


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    a, b, c = (run(ist(3, local_steps=3, seed=s), build=lambda: mlp(dropout=0.2))[0] for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_training_leaves_the_global_random_state_alone():
    data = blobs(3)
    torch.manual_seed(1)
    model, plan, _ = mlp(dropout=0.2)
    before = torch.get_rng_state()
    train(
        model,
        F.cross_entropy,
        data,
        plan=plan,
        algorithm=ist(3, local_steps=2),
        optimizer=OPTIMIZERS["sgd"],
        num_rounds=2,
    )
    assert torch.equal(before, torch.get_rng_state())


# Each refusal for NaN in the data is warned of.
poisoned = pytest.mark.filterwarnings("ignore:data. NaN in the inputs of worker 1")


class Poisoned:
    """Data of which one worker gets NaN in some rounds."""

    def __init__(self, workers, worker, rounds, steps):
        self.clean, self.worker, self.bad = blobs(workers), worker, [r * steps for r in rounds]

    @property
    def num_workers(self):
        return self.clean.num_workers

    def batches(self, worker, first_step, num_steps):
        for x, y in self.clean.batches(worker, first_step, num_steps):
            bad = worker == self.worker and first_step in self.bad
            yield (x * float("nan") if bad else x), y

    def sample(self, worker, num):
        return self.clean.sample(worker, num)


@poisoned
@pytest.mark.parametrize("name", ["ist", "ist-uneven-travel", "local_sgd-travel"])
def test_a_piece_that_is_not_finite_is_refused_and_the_run_goes_on(name):
    algorithm = ALGORITHMS[name]
    _, result = run(algorithm, rounds=6, data=Poisoned(3, 1, [2, 3], algorithm.local_steps))
    assert [r.refused for r in result.history] == [(), (), (1,), (1,), (), ()]
    assert all(torch.isfinite(t).all() for t in result.store.shards().values())
    assert result.state.bad_rounds == 0
    held = torch.stack([algorithm.partition.assign(result.plan.axes, round).held for round in range(6)])
    held[[2, 3], 1] = False  # what was refused counts as not trained
    assert torch.equal(result.state.trained, held.sum((0, 1)))


@poisoned
def test_too_many_refusals_in_a_row_stop_the_run_with_a_remedy():
    algorithm = ALGORITHMS["ist"]
    model, plan, _ = mlp()
    with pytest.raises(TrainingFailed, match=r"round 4\b.*\b3\b.*worker 1\b"):
        run(
            algorithm,
            rounds=9,
            data=Poisoned(3, 1, range(2, 9), algorithm.local_steps),
            max_bad_rounds=3,
            build=lambda: (model, plan, None),
        )
    assert all(torch.isfinite(t).all() for t in named_tensors(model).values())


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match=r"num_rounds\b.*\b0\b"):
        run(ist(3), rounds=0)
    with pytest.raises(ValueError, match=r"(?=.*\b10\b)(?=.*\b11\b).*'h1'"):
        run(ist(11), rounds=1)
    with pytest.raises(ValueError, match=r"(?=.*\b4\b)(?=.*\b3\b).*'ist'"):
        run(ist(3), data=blobs(4))
    with pytest.raises(ValueError, match=r"optimizer_state\b.*'keep'.*'reset'.*'travel'.*'stay'"):
        ist(3, optimizer_state="keep")
    with pytest.raises(ValueError, match=r"local_steps\b.*\b0\b"):
        Algorithm(name="x", partition=Everything(1), local_steps=0)
    with pytest.raises(ValueError, match=r"width\b.*\b0\b"):
        narrow(3, width=0.0)


def test_resting_elements_start_their_state_where_the_optimizer_would():
    for optimizer, key, start in (("adagrad", "sum", 0.1), ("rprop", "step_size", 1e-3)):
        _, result = run(ist(3, local_steps=1, optimizer_state="travel"), rounds=1, optimizer=optimizer)
        values = result.store.shards()[f"layers.1.weight::{key}"]
        assert values.min() > 0
        assert (values == start).double().mean() > 0.3  # what two workers would have to meet in


@pytest.mark.parametrize("name", ["ist-uneven-travel", "relay-travel", "resist"])
def test_groups_by_name_have_their_own_settings_and_starts_of_state(name):
    build = blocks if name == "resist" else (lambda: mlp(norm=False))

    def by_name(net):  # a relay's worker gets its narrow net, with the model's own names
        names = {n for n, _ in net.named_parameters()}
        assert names <= {n for n, _ in build()[0].named_parameters()}
        weights = [p for n, p in net.named_parameters() if n.endswith("weight")]
        biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
        groups = [{"params": weights}, {"params": biases, "lr": 0.0}]
        optimizer = torch.optim.Adagrad(groups, 0.01)
        for group, start in zip(optimizer.param_groups, (0.1, 0.7), strict=True):
            for p in group["params"]:
                optimizer.state[p]["sum"].fill_(start)
        return optimizer

    model, result = run(ALGORITHMS[name], build=build, rounds=2, optimizer=by_name)
    torch.manual_seed(1)
    before, _, _ = build()
    if name != "relay-travel":
        for key, value in before.named_parameters():
            assert torch.equal(value, model.get_parameter(key)) == key.endswith("bias"), key
    sums = {k: v for k, v in result.store.shards().items() if k.endswith("::sum")}
    for key, value in sums.items():
        assert value.min() >= (0.7 if "bias" in key else 0.1) - 1e-6, key
        if "bias" not in key and value.dim() > 1 and name.startswith("ist"):
            assert (value < 0.7).any()
    assert len(sums) == len(list(result.full.inner.parameters()))


def test_state_travels_with_an_optimizer_for_matrices_only():
    def muon(net):
        return torch.optim.Muon([p for p in net.parameters() if p.dim() == 2], 0.01)

    _, result = run(ist(3, local_steps=2, optimizer_state="travel"), rounds=2, optimizer=muon)
    sums = [key for key in result.store.shards() if key.endswith("::momentum_buffer")]
    assert sorted(sums) == [f"{name}.weight::momentum_buffer" for name in ("layers.0", "layers.1", "out")]


def test_state_that_cannot_be_cut_is_refused_and_shared_where_nothing_is_cut():
    with pytest.raises(ValueError, match=r"'row_var'.*layers\.0\.weight.*optimizer_state='reset'"):
        run(ist(3, local_steps=2, optimizer_state="travel"), rounds=2, optimizer="adafactor")
    run(local_sgd(3, local_steps=2, optimizer_state="travel"), rounds=2, optimizer="adafactor")


class Branches(nn.Module):
    """A parameter that gets a gradient only where the data says so."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(9, 6), nn.Linear(9, 6), nn.Linear(6, 4)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("angles", torch.polar(torch.ones(3), torch.tensor([0.1, 1.0, 2.0])))
        self.register_buffer("big", torch.tensor(2**60 + 7))

    def forward(self, x):
        return self.c(F.relu(self.a(x) if x[0, 0] > 0 else self.b(x)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_branches_masks_and_odd_buffers(optimizer):
    from skerry import Plan
    from skerry.plan import In, Out

    def build():
        model = Branches()
        return model, Plan.from_rules(model, {"a": Out("h"), "b": Out("h"), "c": In("h")}), None

    for algorithm in (ist(3, local_steps=1, optimizer_state="travel"), local_sgd(3, local_steps=1)):
        model, result = run(algorithm, build=build, rounds=5, optimizer=optimizer)
        fresh = Branches()
        assert torch.equal(model.mask, fresh.mask)
        assert torch.equal(model.angles, fresh.angles)
        assert model.big == 2**60 + 7
        assert not any(record.refused for record in result.history)


@poisoned
def test_a_failed_run_does_not_resume_to_success(tmp_path):
    kept = [Checkpoints(folder=tmp_path, every_s=0, resume=resume) for resume in (False, True)]
    more = {"rounds": 4, "data": Poisoned(3, 1, range(1, 4), 4), "max_bad_rounds": 3}
    with pytest.raises(TrainingFailed):
        run(ALGORITHMS["ist"], **more, checkpoints=kept[0])
    with pytest.raises(TrainingFailed, match=r"round 3\b.*\b3\b"):
        run(ALGORITHMS["ist"], **more, checkpoints=kept[1])


def test_batch_norm_without_running_statistics_is_refused_before_training():
    model, _, _ = mlp()
    model.norms[0] = nn.BatchNorm1d(13, track_running_stats=False)
    from skerry import Plan
    from skerry.experiments.recipes.image_mlp import mlp_rules

    with pytest.raises(ValueError, match=r"norms\.0.*track_running_stats"):
        run(ist(3), build=lambda: (model, Plan.from_rules(model, mlp_rules(2)), None))


class OnlyOwnData:
    """Data that raises when a worker other than the given ones is asked for."""

    def __init__(self, workers, allowed):
        self.inner, self.allowed, self.num_workers = blobs(workers), allowed, workers

    def batches(self, worker, first_step, num_steps):
        assert worker in self.allowed
        return self.inner.batches(worker, first_step, num_steps)

    def sample(self, worker, num):
        assert worker in self.allowed
        return self.inner.sample(worker, num)


class OneOfThree(Serial):
    """The part of worker 1: the other two hand over what they were given."""

    def mine(self, num_workers):
        return [1]

    def keep(self, *args):
        return Idle(*args)


class Idle(WholeModel):
    """The store in which workers 0 and 2 do nothing."""

    def exchange(self, mine, then, **how):
        handovers = []
        for worker in range(3):
            own = Cuts(self.plan, self.assignment.units(worker))
            tensors = {n: take(t, own.of(n)) for n, t in self.tensors.items()}
            handovers.append(Handover(tensors, replace(mine[0].report, worker=worker)) if worker != 1 else mine[0])
        return super().exchange(handovers, then, **how)


def test_a_process_touches_only_its_own_workers_data():
    algorithm = ist(3, local_steps=2, capacities=(1, 2, 3))
    run(algorithm, data=OnlyOwnData(3, {1}), runtime=OneOfThree(), rounds=2)


def test_a_process_touches_only_its_own_workers_data_in_processes_too():
    algorithm = ist(3, local_steps=2, capacities=(1, 2, 3))
    together(3, lambda member: run(algorithm, data=OnlyOwnData(3, {member.rank}), runtime=member, rounds=2))


def test_all_processes_end_with_the_same_state():
    algorithm, told = ALGORITHMS["ist"], []
    test = next(iter(blobs(1).batches(0, 0, 1)))

    def work(member):
        _, result = run(algorithm, runtime=member, test=Test(*test, every=2))
        told.append([(record.round, record.score, record.train_loss) for record in result.history])
        return result

    results = together(3, work)
    _, serial = run(algorithm, test=test)
    assert told[0] == told[1] == told[2]
    assert [score is None for _, score, _ in told[0]] == [True, False, False]
    for result in results:
        assert torch.equal(result.state.trained, serial.state.trained)
        assert result.score == results[0].score
        assert result.score.count == serial.score.count
        assert result.score.loss == pytest.approx(serial.score.loss)
        assert result.state.totals["flop"] == serial.state.totals["flop"]
        assert result.num_parameters == serial.num_parameters
        assert result.step_cost == serial.step_cost


@poisoned
@pytest.mark.parametrize("name", ["ist", "ist-uneven-travel", "local_sgd-travel"])
def test_a_refused_piece_is_refused_in_processes_as_serially(name):
    algorithm, refused = ALGORITHMS[name], []
    more = {"rounds": 5, "data": Poisoned(3, 1, [0, 2], algorithm.local_steps)}

    def work(member):
        _, result = run(algorithm, runtime=member, **more)
        refused.append([record.refused for record in result.history])
        return {name: tensor.clone() for name, tensor in result.full.tensors()}

    streamed = together(3, work)[0]
    assert refused == [[(1,), (), (1,), (), ()]] * 3
    _, serial = run(algorithm, **more)
    for tensor_name, tensor in serial.full.tensors():
        torch.testing.assert_close(streamed[tensor_name], tensor)


def test_a_model_on_meta_starts_from_an_initializer_in_every_runtime():
    def build():
        with torch.device("meta"):
            model, plan, _ = mlp()
        rules_plan = mlp()[1]  # the ids of units are no part of the model
        assert rules_plan.shapes == plan.shapes
        return model, rules_plan, None

    start = lambda m: FromInitializer(m, seed=3)  # noqa: E731
    with pytest.raises(ValueError, match=r"\bmeta\b.*\bstart=.*FromInitializer"):
        run(ALGORITHMS["ist"], build=build)
    _, serial = run(ALGORITHMS["ist"], build=build, start=start)
    assert not any(t.is_meta for t in serial.store.shards().values())

    def work(member):
        model, result = run(ALGORITHMS["ist"], build=build, start=start, runtime=member)
        assert all(t.is_meta for t in named_tensors(model).values())
        return {name: tensor.clone() for name, tensor in result.full.tensors()}

    streamed = together(3, work)[0]
    for name, tensor in serial.full.tensors():
        torch.testing.assert_close(streamed[name], tensor)


class Scale(nn.Module):
    """A factor that is trained, of any shape and float type."""

    def __init__(self, dtype, *shape):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(shape, dtype=dtype))

    def forward(self, x):
        return x * self.factor.float()


@pytest.mark.parametrize("runtime", ["serial", "processes"])
@pytest.mark.parametrize("last", [Scale(torch.float32), Scale(torch.bfloat16, 4)], ids=["scalar", "dtype"])
def test_state_travels_with_blocks_beside_parameters_of_other_kinds(last, runtime):
    def build():
        body = nn.Sequential(*(Residual(8, 6 + k) for k in range(6)))
        model = nn.Sequential(nn.Linear(9, 8), body, nn.Linear(8, 4), copy.deepcopy(last))
        return model, Blocks("1.*", branch="down").plan(model, torch.randn(16, 9)), None

    algorithm = ist(3, local_steps=2, optimizer_state="travel")
    if runtime == "serial":
        _, result = run(algorithm, build=build, optimizer="adamw")
        for name, tensor in result.store.shards().items():
            assert name.endswith("step") or tensor.shape == result.plan.shapes[name.partition("::")[0]]
    else:
        together(3, lambda member: run(algorithm, build=build, optimizer="adamw", runtime=member))


def test_nets_of_their_own_are_not_cut_up_on_resume(tmp_path):
    def checkpoints(resume):
        return Checkpoints(folder=tmp_path, run="x", every_s=0, resume=resume)

    run(relay(2, local_steps=2), rounds=2, checkpoints=checkpoints(False))
    with pytest.raises(CheckpointError, match="number of nets"):
        run(relay(3, local_steps=2), rounds=4, checkpoints=checkpoints(True))
    with pytest.warns(UserWarning, match="schedule now spans 4 rounds"):
        run(relay(2, local_steps=2), rounds=4, checkpoints=checkpoints(True))


def test_a_relay_of_fewer_rounds_than_workers_is_warned_of():
    with pytest.warns(TheoryWarning, match="few rounds"):
        run(relay(3, local_steps=2), rounds=2)


def test_what_is_no_algorithm_is_named():
    for wrong in ("relay", relay):
        with pytest.raises(ValueError, match="algorithm"):
            run(wrong, data=blobs(2))


def test_serial_training_under_torchrun_is_warned_of(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.warns(UserWarning, match="2 processes were started together"):
        run(relay(2, local_steps=2), rounds=2)
