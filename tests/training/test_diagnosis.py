"""Measures of a training: against what all vectors side by side give. And runs made to go wrong, each in its way.

What ``train`` measures a loop of one's own over ``Session`` does, and processes what the serial runtime does.
"""

import copy
import json
import math
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from together import together
from torch import nn
from torch.nn import functional as F
from zoo import METHODS, blobs, mlp

from skerry import Checkpoints, Plan, Session, Shards, ist, launch, train
from skerry.algorithm import Algorithm
from skerry.algorithms import local_sgd
from skerry.experiments.config import parse_settings
from skerry.experiments.models.mlp import MLP
from skerry.experiments.reports.html import write_report
from skerry.experiments.runs.execute import configure
from skerry.experiments.runs.execute import run as run_in_folder
from skerry.partitions import Disjoint, Everything, Rolling, Sampled
from skerry.plan import In, Out
from skerry.runtimes.serial import Serial
from skerry.training import Test, TheoryWarning
from skerry.training.diagnosis import MEASURES, measures, theory_warnings
from skerry.training.diagnosis.judge import Judge
from skerry.training.evaluation.evaluate import Score

STEPS = 20  # so that every round is looked at
PROBE = STEPS // 2


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1)


def run(
    algorithm, *, data=None, model=None, plan=None, rounds=8, loss_fn=F.cross_entropy, every=1, metrics=None, **more
):
    """Train with a test set and return each round's diagnosis."""
    torch.manual_seed(1)
    workers = algorithm.partition.num_workers
    if model is None:
        model, plan, _ = mlp(norm=False, hidden=(24,))
    data = data or blobs(workers)
    test = more.pop("test", None) or next(iter(blobs(1, batch=60, seed=7).batches(0, 0, 1)))
    settings = {"optimizer": sgd, "verify": False, **more}
    result = train(
        model, loss_fn, data, plan=plan, algorithm=algorithm, num_rounds=rounds,
        test=Test(*test, every=every, metrics=metrics), **settings,
    )  # fmt: skip
    return [record.diagnosis for record in result.history]


def own_loop(algorithm, *, rounds=3, runtime=None, data=None):
    """What ``run`` does as a loop of one's own; yield each round and its workers' subnets, as they ended."""
    torch.manual_seed(1)
    model, plan, _ = mlp(norm=False, hidden=(24,))
    data = data or blobs(algorithm.partition.num_workers)
    with Session(
        model, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=rounds, runtime=runtime,
        loss_fn=F.cross_entropy, test=next(iter(blobs(1, batch=60, seed=7).batches(0, 0, 1))), has_priors=False,
    ) as session:  # fmt: skip
        for round in session.rounds():
            ends = []
            for worker in round.workers:
                start = copy.deepcopy(worker.subnet)
                for batch, labels in data.batches(worker.number, worker.first_step, worker.num_steps):
                    worker.step(F.cross_entropy(worker.subnet(batch), labels), labels)
                ends.append((start, copy.deepcopy(worker.subnet)))
            full = session.full()
            session.score(full)
            yield round, ends, full


def warned(found):
    """The kinds of all warnings."""
    return {kind for each in found for kind in each.warnings}


# ---- formulas


def test_the_identity():
    vectors = torch.randn(5, 7, dtype=torch.float64)
    mean = vectors.mean(0)
    pairs = sum((vectors[a] - vectors[b]).square().sum() for a in range(5) for b in range(a)) / 5**2
    got = measures.variance(float(mean.square().sum()), float(vectors.square().sum(1).mean()))
    assert got == pytest.approx(float(pairs))
    assert got == pytest.approx(float((vectors - mean).square().sum(1).mean()))


def test_independent_moves_drift_by_chance_equal_ones_not_and_opposite_ones_for_ever():
    moves = torch.randn(4, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, squares = moves.mean(0).square().sum(), moves.square().sum(1).mean()
    assert measures.drift(float(mean), float(squares)) == pytest.approx(math.sqrt(3), rel=0.02)
    assert measures.drift(2.0, 2.0) == 0
    assert measures.drift(0.0, 1.0) == math.inf
    assert measures.drift(0.0, 0.0) is None


@pytest.mark.parametrize("num", [100, 1000])
def test_label_skew_is_zero_in_the_mean_where_labels_are_drawn_alike(num):
    mean, rng = torch.tensor([0.1, 0.1, 0.3, 0.5], dtype=torch.float64), torch.Generator().manual_seed(0)
    draws = [torch.multinomial(mean, num, replacement=True, generator=rng).bincount(minlength=4) for _ in range(300)]
    skews = torch.tensor([measures.label_skew(counts, mean) for counts in draws])
    assert abs(skews.mean()) < 4 * skews.std() / 300**0.5
    apart = measures.label_skew(torch.tensor([num, 0, 0, 0]), mean)
    assert apart == pytest.approx(0.9, abs=0.5 / num**0.5 * 2)


# ---- what training measures


def measured_by_hand(algorithm, rounds):
    """What a session of one's own tells of each round, and the same from all subnets side by side."""
    shapes = mlp(norm=False, hidden=(24,))[1].shapes
    x, y = next(iter(blobs(1, batch=60, seed=7).batches(0, 0, 1)))
    x, y = (part[torch.arange(PROBE) * (60 // PROBE)] for part in (x, y))
    for round, ends, full in own_loop(algorithm, rounds=rounds):
        shared = [n for n, p in ends[0][0].named_parameters() if p.shape == shapes[n]]
        moves = [
            torch.cat([(end.get_parameter(n) - start.get_parameter(n)).detach().flatten() for n in shared])
            for start, end in ends
        ]
        u = torch.stack([end(x).detach() for _, end in ends]).double()
        m = torch.stack(moves).double()
        u_apart, m_apart = ((v - v.mean(0)).square().sum() / len(ends) for v in (u, m))
        yield (
            round.diagnosis,
            {
                "dispersion": float(u_apart / u.square().sum() * len(ends)),
                "subnet_loss": sum(F.cross_entropy(end(x), y).item() for _, end in ends) / len(ends),
                "full_loss": F.cross_entropy(full.whole()(x), y).item(),
                "drift": float((m_apart / m.mean(0).square().sum()).sqrt()),
            },
        )


@pytest.mark.parametrize(
    "algorithm", [ist(3, local_steps=STEPS), local_sgd(3, local_steps=STEPS)], ids=lambda a: a.name
)
def test_train_and_a_loop_of_ones_own_measure_what_one_computes_with_all_subnets_at_hand(algorithm):
    of_train = run(algorithm, rounds=3)
    for in_train, (found, expected) in zip(of_train, measured_by_hand(algorithm, 3), strict=True):
        assert found == in_train
        rel = 0.6 if algorithm.name == "local_sgd" else 1e-5  # of 344 shared elements 128 are looked at
        assert found.drift == pytest.approx(expected.pop("drift"), rel=rel)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-5), name
    assert [(each.least_trained, each.rounds_left) for each in of_train][-1] == ((9, 0) if rel == 0.6 else (3, 0))


def test_after_few_local_steps_not_every_round_is_looked_at():
    found = run(local_sgd(2, local_steps=6), rounds=9)
    assert [r for r, each in enumerate(found) if each.dispersion is not None] == [0, 3, 6, 8]
    assert [r for r, each in enumerate(found) if each.drift is not None] == [0, 3, 6, 8]
    assert all(each.full_loss is not None and each.least_trained == 2 * r + 2 for r, each in enumerate(found))
    assert [r for r, each in enumerate(found) if each.label_skew is not None] == [0]


def test_a_test_set_scored_otherwise_is_not_compared_with_subnets():
    model, plan, x = mlp(norm=False)
    y = torch.zeros(len(x), dtype=torch.int64)
    arguments = {"plan": plan, "algorithm": ist(2), "optimizer": sgd, "num_rounds": 1}
    session = Session(model, **arguments, loss_fn=F.cross_entropy, test=(x, y))
    assert session.score(session.full()).probe_loss is not None
    assert session.score(session.full(), F.cross_entropy, (x, y)).probe_loss is None
    assert session.score(session.full(), nn.CrossEntropyLoss(reduction="sum")).probe_loss is None
    with pytest.raises(ValueError, match=r"\btest\b(?!.*score\(\)).*\bloss_fn\b"):
        Session(model, **arguments, test=(x, y))
    without = Session(model, **arguments)
    with pytest.raises(ValueError, match=r"score\(\).*\bloss_fn\b"):
        without.score(without.full())


def test_squared_errors_gain_the_dispersion_when_subnets_are_put_together():
    """One hidden layer: the full model is the mean of the subnets, so the gap is the identity."""
    x = torch.randn(200, 9)
    y = x[:, :4].sin()
    parts = list(torch.arange(200).split(100))
    data, test = Shards(x, y, parts, batch_size=20, seed=0), (x[:PROBE], y[:PROBE])
    sizes = []

    def loss_fn(output, target):
        if not torch.is_grad_enabled() and len(target) == PROBE:
            sizes.append(float(output.square().mean()))
        return F.mse_loss(output, target)

    (found,) = run(ist(2, local_steps=STEPS), data=data, test=test, loss_fn=loss_fn, rounds=1)
    of_subnets = sum(sizes[:2]) / 2
    assert found.gap == pytest.approx(found.dispersion * of_subnets, rel=1e-4)
    assert found.gap > 0


# ---- warnings


def opposed(local_steps, apart=1.0, rounds=6, **more):
    """Two workers want a linear model to be .7 a + b and .7 a - b; no unit is dealt out."""
    x, rng = torch.randn(200, 5), torch.Generator().manual_seed(5)
    a, b = F.normalize(torch.randn(2, 5, 1, generator=rng), dim=1)
    y = torch.cat([x[:100] @ (0.7 * a + apart * b), x[100:] @ (0.7 * a - apart * b)])
    model = nn.Linear(5, 1, bias=False)
    nn.init.zeros_(model.weight)
    parts = list(torch.arange(200).split(100))
    return run(
        local_sgd(2, local_steps=local_steps), model=model, plan=Plan.whole(model), loss_fn=F.mse_loss, rounds=rounds,
        data=Shards(x, y, parts, batch_size=100, seed=0), test=(x, y),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.2), **more,
    )  # fmt: skip


def test_too_many_local_steps_for_the_drift():
    torch.manual_seed(0)
    with pytest.warns(TheoryWarning, match=r"^drift: .*\blocal_steps\b"):
        found = opposed(local_steps=50)
    assert warned(found) == {"drift"}
    assert [bool(each.warnings) for each in found].count(True) == 1
    torch.manual_seed(0)
    assert not warned(opposed(local_steps=50, apart=0.1))  # alike
    torch.manual_seed(0)
    assert not warned(opposed(local_steps=1, rounds=300))  # as many steps, each with the mean gradient


@pytest.mark.parametrize("apart", [1.0, 0.1])
def test_a_resumed_run_is_judged_as_one_that_was_never_stopped(tmp_path, apart):
    """Also by its first rounds: the last moves of every converged run are short and apart."""

    def stop(output, y):
        evaluated.append(None)
        if len(evaluated) == 3:
            raise KeyError
        return torch.zeros(len(y))

    evaluated = []
    stopped, resumed = (Checkpoints(folder=tmp_path, every_s=0, resume=resume) for resume in (False, True))
    torch.manual_seed(0)
    with pytest.raises(KeyError):
        opposed(local_steps=50, rounds=8, apart=apart, metrics={"stop": stop}, checkpoints=stopped)
    torch.manual_seed(0)
    found = opposed(local_steps=50, rounds=8, apart=apart, checkpoints=resumed)
    torch.manual_seed(0)
    undisturbed = opposed(local_steps=50, rounds=8, apart=apart)
    assert [each.rounds_left for each in found] == [5, 4, 3, 2, 1, 0]
    assert min(each.drift for each in found) > 2 * theory_warnings.DRIFT_OVER_CHANCE
    assert found == undisturbed[2:]


def test_unlike_labels():
    x, y = next(iter(blobs(1, batch=240).batches(0, 0, 1)))
    order = y.argsort()
    data = Shards(x, y, list(order.split(60)), batch_size=16, seed=0)
    with pytest.warns(TheoryWarning, match=r"^label skew: .*\blog_priors\b"):
        found = run(ist(4, local_steps=STEPS), data=data)
    assert warned(found) == {"label skew"}
    assert found[0].label_skew == pytest.approx(0.7, abs=0.1)
    assert found[1].label_skew is None
    with pytest.warns(TheoryWarning, match="^label skew: ") as told:
        of_own = [round.diagnosis for round, *_ in own_loop(ist(4, local_steps=STEPS), data=data, rounds=8)]
    assert of_own == found
    assert told[0].filename == __file__


def test_coverage_too_low_for_the_rounds_left():
    for partition, enough in ((Sampled((0.1, 0.1)), 60), (Rolling((0.25, 0.25)), 19)):
        few = Algorithm(name="few", partition=partition, local_steps=2)
        with pytest.warns(TheoryWarning, match=r"^coverage: .*\b3 rounds\b") as told:
            found = run(few, rounds=4)
        assert warned(found) - {"bottleneck", "chance"} == {"coverage"}
        assert found[0].warnings  # what is to come is known at once
        assert found[-1].least_trained == 0
        held = sum(partition.assign(mlp(hidden=(24,))[1].axes, r).held.sum(0) for r in range(4))
        messages = [str(warning.message) for warning in told]
        assert any(f"coverage: {float((held == 0).double().mean()):.0%}" in message for message in messages)
        assert "coverage" not in warned(run(few, rounds=enough, every=0))


@dataclass(frozen=True)
class Unscaled(Disjoint):
    """Says that every subnet has every unit."""

    def share(self, axes, round):
        return Everything(self.num_workers).share(axes, round)


def test_scale_off():
    wrong, right = (Algorithm(name="x", partition=p(4), local_steps=STEPS) for p in (Unscaled, Disjoint))
    x, y = next(iter(blobs(1, batch=60, seed=7).batches(0, 0, 1)))
    task = {"loss_fn": lambda output, y: F.mse_loss(output, F.one_hot(y, 4).float()), "test": (x, y)}
    with pytest.warns(TheoryWarning, match=r"^scale: .*\bpartition\.share\b"):
        found = run(wrong, **task)
    assert warned(found) == {"scale"}
    assert not warned(run(right, **task))


def judged(subnet_loss, full_losses, *, first=2.3, before=()):
    """The kinds that a run of subnets warns of whose full model ends with ``full_losses``."""
    model, plan, _ = mlp(norm=False, hidden=(24,))
    session = Session(model, plan=plan, algorithm=ist(4), optimizer=sgd, num_rounds=20)
    judge = Judge(session.setup, plan, None, {"subnet loss": [first], "scale": list(before)})
    found = [
        judge.after_score(
            measures.Diagnosis(subnet_loss=subnet_loss, rounds_left=1), Score(full, 0.5, 60, {}, full), dealt=True,
            most_frequent=0.1,
        )
        for full in full_losses
    ]  # fmt: skip
    return warned(found), {kind for each in found for kind in each.checked}


def test_a_full_model_that_falls_behind_late_is_judged_by_its_latest_evaluations():
    early = [2.3, 2.3] * 20
    assert judged(0.05, [0.9] * 3, before=early) == ({"scale"}, {"scale", "loss"})
    assert judged(0.05, [0.09] * 3, before=early) == (set(), {"scale", "loss"})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_full_model_without_a_loss_is_warned_of(loss):
    assert judged(0.05, [loss]) == ({"loss"}, {"loss"})  # and scale is not said to be well


def test_a_training_loss_that_grows():
    """In directions in which steps are too long; not where a run only stays where it is."""

    def quadratic(output, y):
        return output.square().mean() + 0.01

    for rate, kinds in ((5.0, {"loss"}), (0.0, set()), (0.1, set())):
        model = nn.Linear(4, 1, bias=False)
        nn.init.ones_(model.weight)
        x = torch.eye(4).repeat(10, 1)
        data = Shards(x, torch.zeros(40), list(torch.arange(40).split(20)), batch_size=20, seed=0)
        found = run(
            local_sgd(2, local_steps=1), model=model, plan=Plan.whole(model), data=data, loss_fn=quadratic, rounds=9,
            test=(x, torch.zeros(40)), optimizer=lambda net, rate=rate: torch.optim.SGD(net.parameters(), rate),
        )  # fmt: skip
        assert warned(found) == kinds, rate
        assert ["loss" in each.checked for each in found] == [True] * 9  # of the test set; later of training, too


def test_an_accuracy_of_chance_and_one_above():
    x, y = next(iter(blobs(1, batch=60, seed=7).batches(0, 0, 1)))
    chance = run(ist(2, local_steps=STEPS), test=(x, y.roll(1)), rounds=2)  # labels of other inputs
    assert warned(chance) == {"chance"}
    assert ["chance" in each.checked for each in chance] == [False, True]  # it may still learn
    assert not warned(run(ist(2, local_steps=STEPS), rounds=2))


@pytest.mark.parametrize("held_by", ["all", "parts"])
def test_what_cannot_be_judged_is_not_said_to_be_well(held_by):
    x, y = next(iter(blobs(1, batch=60, seed=7).batches(0, 0, 1)))
    model, plan, _ = mlp(norm=False, hidden=(24,))
    result = train(
        model, F.cross_entropy, blobs(3), plan=plan, algorithm=ist(3, local_steps=1), optimizer=sgd, num_rounds=2,
        test=Test(x, y, held_by=held_by),
    )  # fmt: skip
    checked = {kind for record in result.history for kind in record.diagnosis.checked}
    always = {"refused", "coverage", "label skew", "bottleneck", "loss"}
    assert checked == (always if held_by == "parts" else always | {"scale", "chance"})  # never drift or few rounds


@pytest.mark.parametrize(
    "name", ["ist", "ist-slow-core", "local_sgd", "narrow", "diloco", "federated_dropout", "ensemble"]
)
def test_a_healthy_run_raises_none(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(METHODS[name].algorithm, rounds=12, optimizer=METHODS[name].optimizer)
    assert not warned(found)


# ---- everywhere the same, and written down


def assert_same(found, serial):
    """In every process what the serial runtime tells."""
    for ours, meant in zip(found, serial, strict=True):
        for measure in MEASURES:
            got, expected = getattr(ours, measure), getattr(meant, measure)
            assert got == (expected if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-5)), measure
        assert ours.warnings.keys() == meant.warnings.keys()


@pytest.mark.parametrize("name", ["ist", "ist-uneven-travel", "local_sgd-overlap-travel", "federated_dropout"])
def test_threads_report_the_serial_figures(name):
    algorithm = replace(METHODS[name].algorithm, local_steps=STEPS)
    serial = run(algorithm, rounds=3)
    for found in together(3, lambda member: run(algorithm, rounds=3, runtime=member)):
        assert_same(found, serial)


def as_process(runtime):
    torch.set_num_threads(1)
    for algorithm in (ist(2, local_steps=STEPS), local_sgd(2, local_steps=STEPS)):
        x, y = next(iter(blobs(1, batch=240).batches(0, 0, 1)))
        data = Shards(x, y, list(y.argsort().split(120)), batch_size=16, seed=0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = run(algorithm, data=data, rounds=3, runtime=runtime)
            assert len(told) == (runtime.rank == 0)  # of unlike labels, once
            of_own = [round.diagnosis for round, *_ in own_loop(algorithm, data=data, runtime=runtime)]
            assert_same(found, run(algorithm, data=data, rounds=3))
        assert of_own == found
        assert warned(found) == {"label skew"}


def test_processes_report_the_serial_figures():
    launch(as_process, 2)


def test_a_run_writes_its_measures_and_warnings_and_the_report_shows_them(tmp_path):
    settings = parse_settings(["rounds=2", "local_steps=4", "split=by_label", "partition.reshuffle=1", "eval_every=1"])
    config = configure("digits-mlp", "ist", settings)
    with pytest.warns(TheoryWarning, match="label skew"):
        run_in_folder(config, tmp_path / "x", Serial(), resume=False)
    first, last = (json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines())
    assert set(first["diagnosis"]) == set(MEASURES)
    assert all(value is not None for value in first["diagnosis"].values())
    assert (list(first["warnings"]), last["warnings"]) == (["untrained weights", "label skew"], {})
    assert json.loads((tmp_path / "x" / "summary.json").read_text())["warnings"] == first["warnings"]
    page = write_report(tmp_path / "x").read_text()
    warning = first["warnings"]["label skew"].replace("'", "&#39;")
    assert f"x, round 0:</b> {warning}." in page
    for measure in ("dispersion", "drift"):
        assert f"<td>{last['diagnosis'][measure]:#.3g}</td>" in page
    assert page.count("<svg") == 6  # four curves, and the two measures that change from round to round


def test_without_a_test_set_outputs_are_not_looked_at():
    model = MLP([9, 8, 4], norm=False)
    result = train(
        model, F.cross_entropy, blobs(2), plan=Plan.from_rules(model, {"layers.0": Out("h"), "out": In("h")}),
        algorithm=ist(2, local_steps=2), optimizer=sgd, num_rounds=2,
    )  # fmt: skip
    found = [record.diagnosis for record in result.history]
    assert [(each.dispersion, each.subnet_loss, each.gap) for each in found] == [(None, None, None)] * 2
    assert all(each.drift is not None for each in found)
