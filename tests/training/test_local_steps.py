"""How workers take their local steps: against plain PyTorch loops, to the bit, in every way to train."""

import math
import shutil
from unittest import mock

import pytest
import torch
from mixed_tensors import copied
from stopped_runs import Stopped
from together import together
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint
from transformers import get_cosine_schedule_with_warmup
from zoo import blobs

from skerry import Checkpoints, Session, discover, ist, relay, train
from skerry.algorithms import diloco, local_sgd, single
from skerry.callbacks import Callback
from skerry.model.tensors import named_tensors
from skerry.runtimes import Serial
from skerry.training import cosine
from skerry.training.diagnosis.label_counts import LabelCounts
from skerry.training.evaluation.labels import in_range
from skerry.training.steps import prepared as prepared_subnets
from skerry.training.steps.prepared import prepared, repeated_blocks
from skerry.training.steps.rates import SchedulerRates, scaled_rates
from skerry.training.steps.settings import StepSettings
from skerry.training.worker import Worker

ROUNDS, STEPS = 4, 5
TOTAL = ROUNDS * STEPS


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(self.norm(self.up(x)).relu())


def build(dropout=0.0):
    torch.manual_seed(1)
    blocks = nn.Sequential(Block(), Block())
    return nn.Sequential(nn.Linear(9, 8), blocks, nn.Dropout(dropout), nn.Linear(8, 4))


def groups(net):
    """SGD with a group by name."""
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    others = [p for name, p in net.named_parameters() if not name.endswith("bias")]
    return torch.optim.SGD([{"params": others}, {"params": biases, "lr": 0.02}], lr=0.05, momentum=0.8)


def adamw(net):
    return torch.optim.AdamW(net.parameters(), 3e-3)


def warmup_then_decay(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.2, total_iters=6), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[6])


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.1, total_iters=4), lr_scheduler.MultiStepLR(optimizer, [7, 11])]
    )


SCHEDULERS = {
    "cosine annealing": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=TOTAL),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda k: 1 / (1 + k), lambda k: 0.9**k]),
    "sequential": warmup_then_decay,
    "chained": chained,
    "transformers": lambda o: get_cosine_schedule_with_warmup(o, num_warmup_steps=6, num_training_steps=TOTAL),
}
FEATURES = {
    **{name: {"lr_scheduler": make} for name, make in SCHEDULERS.items()},
    "clip": {"clip_grad_norm": 0.3},
    "accumulate": {"accumulate": 4},  # of 8 samples
    "accumulate unevenly": {"accumulate": 3},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "checkpoint": {"checkpoint_activations": True},
    "all": {
        "lr_scheduler": SCHEDULERS["one cycle"], "clip_grad_norm": 0.3, "accumulate": 2, "precision": "fp16",
        "checkpoint_activations": True,
    },
}  # fmt: skip
LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("sequential", "transformers", "bf16")]
SHORT = {"chained", "clip", "accumulate unevenly", "fp16", "checkpoint", "all"}
EACH = pytest.mark.parametrize(
    "feature", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.slow]) for name in FEATURES]
)
SOME = pytest.mark.parametrize("feature", [*LONG, "all"])


def plain(optimizer, *, lr_scheduler=None, clip_grad_norm=None, accumulate=1, precision="fp32",
          checkpoint_activations=False, wrap=lambda net: net, num=TOTAL, loss_fn=F.cross_entropy,
          scaler=None):  # fmt: skip
    """What people write in PyTorch."""
    net = build()
    called = wrap(net)
    opt = optimizer(net)
    scheduler = lr_scheduler(opt) if lr_scheduler else None
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    types, losses = {"bf16": torch.bfloat16, "fp16": torch.float16}, []

    def forward(x):
        if not checkpoint_activations:
            return called(x)
        x = net[0](x)
        for block in net[1]:
            x = checkpoint(block, x, use_reentrant=False)
        return net[3](net[2](x))

    for x, y in blobs(1).batches(0, 0, num):
        loss_of_step = 0.0
        for xs, ys in zip(x.tensor_split(accumulate), y.tensor_split(accumulate), strict=True):
            with torch.autocast("cpu", types.get(precision), enabled=precision in types):
                out = forward(xs)
            weight = len(ys) * accumulate / len(y)
            loss = loss_fn(out.float(), ys)
            loss = (loss * weight if weight != 1 else loss) / accumulate
            seen = [{n: b.clone() for n, b in block.named_buffers()} for block in net[1]]
            scaler.scale(loss).backward()
            if checkpoint_activations:  # PyTorch computes blocks again in training mode: undo that for batch norm
                for block, buffers in zip(net[1], seen, strict=True):
                    for name, buffer in block.named_buffers():
                        buffer.copy_(buffers[name])
            loss_of_step += loss.detach().double()
        scaler.unscale_(opt)
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip_grad_norm)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        if scheduler is not None:
            scheduler.step()
        losses.append(float(loss_of_step))
    return net, losses


def assert_same(model, meant):
    for (name, a), b in zip(named_tensors(model).items(), named_tensors(meant).values(), strict=True):
        assert torch.equal(a, b), name


def by_train(
    optimizer, *, model=None, loss_fn=F.cross_entropy, algorithm=None, runtime=None, stop=None, folder=None,
    resume=False, rounds=ROUNDS, **more,
):  # fmt: skip
    def on_round(session, record):
        losses.append(record.train_loss)
        if record.round == stop:
            raise Stopped

    losses, model = [], model or build()
    algorithm = algorithm or single(local_steps=STEPS)
    saved = {} if folder is None else {"checkpoints": Checkpoints(folder=folder, run="a", every_s=0, resume=resume)}
    result = train(
        model, loss_fn, blobs(algorithm.partition.num_workers), plan=discover(model, torch.randn(8, 9)),
        algorithm=algorithm, optimizer=optimizer, num_rounds=rounds, runtime=runtime,
        callbacks=[Callback(on_round=on_round)], **saved, **more,
    )  # fmt: skip
    return model, losses, result


def by_session(optimizer, **more):
    model, losses = build(), []
    plan = discover(model, torch.randn(8, 9))
    with Session(
        model, plan=plan, algorithm=single(local_steps=STEPS), optimizer=optimizer, num_rounds=ROUNDS, **more
    ) as session:
        for round in session.rounds():
            for worker in round.workers:
                for x, y in blobs(1).batches(worker.number, worker.first_step, worker.num_steps):
                    k = worker.accumulate
                    for xs, ys in zip(x.tensor_split(k), y.tensor_split(k), strict=True):
                        loss, weight = F.cross_entropy(worker.subnet(xs), ys), len(ys) * k / len(y)
                        worker.backward(loss * weight if weight != 1 else loss)
                    worker.step()
            losses.append(round.train_loss)
    return model, losses


@EACH
def test_one_worker_with_everything_is_a_plain_loop(feature):
    settings = FEATURES[feature]
    meant, losses = plain(groups, **settings)
    for model, of_rounds in (by_train(groups, **settings)[:2], by_session(groups, **settings)):
        assert_same(model, meant)
        assert of_rounds == pytest.approx([sum(losses[k : k + STEPS]) / STEPS for k in range(0, TOTAL, STEPS)])
    nothing, _ = plain(groups)
    assert torch.equal(nothing[0].weight, meant[0].weight) == (feature == "checkpoint")


@pytest.mark.parametrize("name", ["one cycle", "transformers"])
def test_schedulers_of_adamw_change_its_betas_too(name):
    meant, _ = plain(adamw, lr_scheduler=SCHEDULERS[name])
    assert_same(by_train(adamw, lr_scheduler=SCHEDULERS[name])[0], meant)


@SOME
def test_processes_are_the_serial_runtime(feature):
    algorithm, settings = ist(3, local_steps=2, optimizer_state="travel"), FEATURES[feature]
    _, losses, result = by_train(groups, algorithm=algorithm, runtime=Serial(), rounds=3, **settings)
    meant = dict(result.full.tensors())

    def work(member):
        _, own_losses, own = by_train(groups, algorithm=algorithm, runtime=member, rounds=3, **settings)
        return own_losses, {name: t.clone() for name, t in own.full.tensors()}, own.step_cost

    for rank, (own_losses, tensors, cost) in enumerate(together(3, work)):
        assert own_losses == losses
        assert cost == result.step_cost
        assert rank > 0 or all(torch.equal(tensors[name], meant[name]) for name in meant)


@SOME
def test_resume_is_exact(feature, tmp_path):
    for runs in ("serial", "processes"):
        algorithm = relay(2, local_steps=STEPS, optimizer_state="travel")
        settings = {**FEATURES[feature], "algorithm": algorithm}

        def work(runtime, folder, settings=settings, **more):
            result = by_train(groups, runtime=runtime, folder=folder, **settings, **more)[2]
            return copied(result.store.shards())

        def all_of(folder, runs=runs, work=work, **more):
            if runs == "serial":
                return [work(Serial(), folder, **more)]
            return together(2, lambda member: work(member, folder, **more))

        whole = all_of(tmp_path / "whole")
        with pytest.raises(Stopped):
            all_of(tmp_path / "stopped", stop=2)
        for own, meant in zip(all_of(tmp_path / "stopped", resume=True), whole, strict=True):
            assert own.keys() == meant.keys()
            assert all(torch.equal(own[name], meant[name]) for name in meant)
        shutil.rmtree(tmp_path / "stopped")
        shutil.rmtree(tmp_path / "whole")


def test_the_scale_of_half_precision_is_that_of_a_plain_loop_also_after_a_resume(tmp_path):
    def loss_fn(out, y):
        return F.cross_entropy(out, y) * 30  # overflows until the scale has fallen

    def sgd(net):
        return torch.optim.SGD(net.parameters(), 1e-4)

    def scale(**more):
        kept = by_train(sgd, loss_fn=loss_fn, precision="fp16", **more)[2].store.kept[0]
        return {key: kept[f"::scaler::{key}"].item() for key in ("scale", "_growth_tracker")}

    scaler = torch.amp.GradScaler("cpu")
    plain(sgd, loss_fn=loss_fn, precision="fp16", scaler=scaler)
    meant = {key: scaler.state_dict()[key] for key in ("scale", "_growth_tracker")}
    assert meant["scale"] < 65536
    assert STEPS < meant["_growth_tracker"] < TOTAL
    assert scale() == meant
    with pytest.raises(Stopped):
        scale(folder=tmp_path, stop=2)
    assert scale(folder=tmp_path, resume=True) == meant


class Shifted(nn.Module):
    """Has parameters of any two names."""

    def __init__(self, names):
        super().__init__()
        self.net, self.names = build(), names
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(4)))

    def forward(self, x):
        scale, shift = (getattr(self, name) for name in self.names)
        return self.net(x) * scale + shift


@pytest.mark.slow
def test_parameters_may_be_called_as_what_workers_keep(tmp_path):
    for make in (lambda: local_sgd(2, local_steps=2, optimizer_state="stay"), lambda: diloco(2, local_steps=2)):
        ends = []
        for names in (("scaler", "outer"), ("a", "b")):
            settings = {"algorithm": make(), "precision": "fp16", "folder": tmp_path / f"{make().name}-{names[0]}"}
            with pytest.raises(Stopped):
                by_train(adamw, model=Shifted(names), stop=1, **settings)
            ends.append(by_train(adamw, model=Shifted(names), resume=True, **settings)[0])
        assert_same(*ends)


def test_a_scheduler_takes_each_step_once_over_a_training():
    class Counts(lr_scheduler.LRScheduler):
        taken = 0

        def get_lr(self):
            type(self).taken += 1
            return [group["lr"] for group in self.optimizer.param_groups]

    by_train(groups, algorithm=ist(2, local_steps=STEPS), lr_scheduler=Counts)
    assert Counts.taken <= 2 * TOTAL  # with a trial before training
    rates = SchedulerRates(SCHEDULERS["lambda"], TOTAL)
    ahead = rates.of_steps(groups(build()), 10, 3)
    assert [row[0]["lr"] for row in ahead] == [0.05 / (1 + k) for k in (10, 11, 12)]
    assert rates.of_steps(groups(build()), 2, 1)[0][0]["lr"] == 0.05 / 3  # also back


@pytest.mark.parametrize("make", [
    lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=3),
    lambda o: lr_scheduler.LambdaLR(o, lambda step: [1.0, 0.5, 0.1][step]),
])  # fmt: skip
def test_a_scheduler_with_too_few_steps_is_told_before_training(make):
    model = build()
    with pytest.raises(ValueError, match=rf"^lr_scheduler: .*num_rounds \* local_steps = {TOTAL} steps"):
        by_train(groups, model=model, lr_scheduler=make)
    assert_same(model, build())


def test_the_record_has_the_factor_of_a_scheduler():
    factors = []
    model = build()
    train(
        model, F.cross_entropy, blobs(1), plan=discover(model, torch.randn(8, 9)), algorithm=single(local_steps=STEPS),
        optimizer=groups, num_rounds=ROUNDS, lr_scheduler=lambda o: lr_scheduler.StepLR(o, STEPS, gamma=0.5),
        callbacks=[Callback(on_round=lambda session, record: factors.append(record.rate_factor))],
    )  # fmt: skip
    assert factors == [1.0, 0.5, 0.25, 0.125]


def loop_by_hand(make, **more):
    model = build()
    with Session(
        model, plan=discover(model, torch.randn(8, 9)), algorithm=single(local_steps=STEPS), optimizer=groups,
        num_rounds=1, **more,
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                scheduler = make(worker.optimizer)
                for x, y in blobs(1).batches(0, worker.first_step, worker.num_steps):
                    worker.step(F.cross_entropy(worker.subnet(x), y))
                    scheduler.step()
    return model


@pytest.mark.parametrize("name", ["cosine annealing", "sequential", "one cycle"])
def test_a_scheduler_that_is_stepped_by_hand_is_respected(name):
    meant, _ = plain(groups, lr_scheduler=SCHEDULERS[name], num=STEPS)
    assert_same(loop_by_hand(SCHEDULERS[name]), meant)


def test_two_schedules_at_once_are_told():
    with pytest.warns(UserWarning, match="lr_scheduler="):
        model = loop_by_hand(SCHEDULERS["sequential"], schedule=cosine)
    assert_same(model, plain(groups, lr_scheduler=SCHEDULERS["sequential"], num=STEPS)[0])


def test_blocks_are_computed_again_and_their_activations_not_stored():
    def saved(settings):
        net, sizes = build(), []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t)
        with prepared(net, settings, torch.device("cpu")), hooks:
            net(torch.randn(16, 9))
        assert not any("forward" in vars(module) for module in net.modules())
        return sum(sizes)

    assert saved(StepSettings(checkpoint_activations=True)) < saved(StepSettings()) / 2
    costs = {name: by_train(groups, **FEATURES[name])[2].step_cost for name in ("checkpoint", "bf16", "accumulate")}
    costs["plain"] = by_train(groups)[2].step_cost
    for name in ("checkpoint", "accumulate"):
        assert costs[name].activations < costs["plain"].activations
    assert costs["accumulate"].flop == costs["plain"].flop < costs["checkpoint"].flop


def test_repeated_blocks_of_a_relay_and_of_a_subnet_without_some():
    model = build()
    assert repeated_blocks(model) == list(model[1])
    by_train(groups, algorithm=relay(2, local_steps=2), checkpoint_activations=True)


def test_dropout_is_the_same_when_computed_again():
    ends = []
    for again in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(9, 8), nn.Sequential(*(nn.Sequential(Block(), nn.Dropout(0.5)) for _ in "ab")))
        train(
            model, F.cross_entropy, blobs(1), plan=discover(model, torch.randn(8, 9)), optimizer=groups, num_rounds=2,
            algorithm=single(local_steps=3), checkpoint_activations=again,
        )  # fmt: skip
        ends.append(model)
    assert_same(*ends)


@pytest.fixture
def graphs():
    """Sizes of the first parameter of the graphs that are compiled, and how often they ran; inductor takes minutes."""
    torch._dynamo.reset()
    prepared_subnets._compiled_call.cache_clear()
    compiled, ran, compile = [], [], torch.compile

    def backend(graph, inputs):
        compiled.append(tuple(inputs[0].shape))

        def run(*args):
            ran.append(tuple(args[0].shape))
            return graph(*args)

        return run

    flag = "torch.utils._python_dispatch._is_in_torch_dispatch_mode"  # may stay set, and then says nothing
    with (
        mock.patch.object(torch, "compile", lambda fn, **more: compile(fn, backend=backend, **more)),
        mock.patch(flag, True),
    ):
        yield compiled, ran
    prepared_subnets._compiled_call.cache_clear()


@pytest.mark.parametrize(
    ("algorithm", "sizes"),
    [(ist(3, local_steps=3), [(4, 8)]), (ist(2, local_steps=3, capacities=(1, 2)), [(4, 8), (8, 8)]),
     (relay(3, local_steps=3), [(4, 8)]), (single(local_steps=3), [(12, 8)])],
    ids=["ist", "uneven", "relay", "single"],
)  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"precision": "bf16", "accumulate": 2}], ids=["plain", "bf16"])
def test_subnets_are_compiled_once_per_size(graphs, algorithm, sizes, more):
    compiled, ran = graphs
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    weights = copied(named_tensors(model))
    ends = []
    for compile in (True, False):
        for name, tensor in named_tensors(model).items():
            tensor.copy_(weights[name])
        data = blobs(algorithm.partition.num_workers, features=8)
        result = train(
            model, F.cross_entropy, data, plan=discover(model, torch.randn(8, 8)), algorithm=algorithm,
            optimizer=groups, num_rounds=4, compile=compile, **more,
        )  # fmt: skip
        ends.append(copied(result.store.shards()))
    assert compiled == sizes
    assert len(ran) == 4 * 3 * algorithm.partition.num_workers * more.get("accumulate", 1)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
def test_a_compiled_subnet_is_a_compiled_net():
    meant, _ = plain(groups, wrap=lambda net: torch.compile(net, dynamic=False))
    assert_same(by_train(groups, compile=True)[0], meant)


WRONG = {
    "clip_grad_norm=0": {"clip_grad_norm": 0},
    "clip_grad_norm='a'": {"clip_grad_norm": "a"},
    "accumulate=0": {"accumulate": 0},
    "accumulate=2.0": {"accumulate": 2.0},
    "precision.*bf16": {"precision": "bf17"},
    "compile='yes'": {"compile": "yes"},
    "lr_scheduler.*function": {"lr_scheduler": lr_scheduler.StepLR(groups(build()), 3)},
    "lr_scheduler.*T_max": {"lr_scheduler": lr_scheduler.CosineAnnealingLR},
    "lr_scheduler.*int": {"lr_scheduler": lambda o: 3},
    "lr_scheduler.*ReduceLROnPlateau": {"lr_scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o)},
    "another optimizer": {"lr_scheduler": lambda o: lr_scheduler.StepLR(groups(build()), 3)},
    "schedule and lr_scheduler": {"lr_scheduler": SCHEDULERS["cyclic"], "schedule": cosine},
    "schedule.*lr_scheduler=": {"schedule": SCHEDULERS["cosine annealing"]},
}


@pytest.mark.parametrize("named", WRONG)
def test_wrong_settings_are_named_in_one_line(named):
    with pytest.raises(ValueError, match=named) as caught:
        by_train(groups, **WRONG[named])
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_without_repeated_blocks_is_told():
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"checkpoint_activations.*repeated blocks"):
        train(
            model, F.cross_entropy, blobs(2), plan=discover(model, torch.randn(8, 9)), algorithm=ist(2),
            optimizer=groups, num_rounds=1, checkpoint_activations=True,
        )  # fmt: skip


def test_a_step_of_too_many_or_too_few_losses_is_told():
    model = build()
    arguments = {"plan": discover(model, torch.randn(8, 9)), "algorithm": ist(2), "optimizer": groups, "num_rounds": 1}
    (batch,) = blobs(2).batches(0, 0, 1)
    session = Session(model, accumulate=2, **arguments)
    worker = next(next(session.rounds()).workers)
    worker.backward(F.cross_entropy(worker.subnet(batch[0]), batch[1]))
    with pytest.raises(ValueError, match=r"worker 0, round 0, step 0: 1 losses.*accumulate=2"):
        worker.step()
    worker.step(F.cross_entropy(worker.subnet(batch[0]), batch[1]))
    for _ in range(2):
        worker.backward(F.cross_entropy(worker.subnet(batch[0]), batch[1]))
    with pytest.raises(ValueError, match=r"step 1: one loss more than accumulate=2"):
        worker.backward(F.cross_entropy(worker.subnet(batch[0]), batch[1]))


class Odd:
    """Data of which one batch of worker 1 is changed."""

    num_workers = 2

    def __init__(self, change):
        self.change = change

    def batches(self, worker, first_step, num_steps):
        for step, (x, y) in enumerate(blobs(2).batches(worker, first_step, num_steps), first_step):
            yield self.change(x, y) if (worker, step) == (1, 7) else (x, y)

    def sample(self, worker, num):
        return blobs(2).sample(worker, num)


def train_on(change, **more):
    model = build()
    return train(
        model, F.cross_entropy, Odd(change), plan=discover(model, torch.randn(8, 9)), optimizer=groups, num_rounds=3,
        algorithm=ist(2, local_steps=STEPS), **more,
    )  # fmt: skip


def test_labels_out_of_range_are_named_with_worker_and_step():
    with pytest.raises(ValueError, match=r"Target 4.*worker 1, round 1, step 2.*of \d to 4") as caught:
        train_on(lambda x, y: (x, y.index_fill(0, torch.tensor([3]), 4)))
    assert len(str(caught.value).splitlines()) == 1


def test_labels_are_looked_at_on_the_cpu_where_a_device_would_fail_on_them():
    logits, labels = torch.empty(4, 3, device="meta"), torch.tensor([0, 2, -100, 3])
    for loss_fn in (F.cross_entropy, nn.CrossEntropyLoss()):
        with pytest.raises(IndexError, match="Target 3"):
            in_range(loss_fn, lambda: labels)(logits, labels.to("meta"))
        in_range(loss_fn, lambda: labels[:3])(logits, labels.to("meta"))
    assert in_range(F.mse_loss, lambda: labels) is F.mse_loss


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}])
def test_nan_in_the_data_is_named_with_worker_and_step_and_the_run_goes_on(settings):
    records = []
    with pytest.warns(UserWarning, match=r"NaN in the inputs of worker 1, round 1, step 2\b") as caught:
        train_on(
            lambda x, y: (x.index_fill(0, torch.tensor([3]), math.nan), y),
            callbacks=[Callback(on_round=lambda session, record: records.append(record.refused))], **settings,
        )  # fmt: skip
    assert records == [(), (1,), ()]
    assert len([w for w in caught if "NaN" in str(w.message)]) == 1


@pytest.mark.parametrize(("num_ignored", "settings"), [(8, {"accumulate": 2}), (16, {})])
def test_a_part_without_labels_is_named(num_ignored, settings):
    with pytest.warns(UserWarning, match=r"ignored labels \(-100\).*worker 1, round 1, step 2\b.*local-steps"):
        train_on(lambda x, y: (x, y.index_fill(0, torch.arange(num_ignored), -100)), **settings)


def test_parts_with_ignored_labels_that_are_weighted_by_hand_are_the_batch():
    x, y = torch.randn(16, 9), torch.arange(16) % 4
    y[:9] = -100  # the first half has none
    gradients = []
    for accumulate in (1, 2):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        worker = Worker(model, optimizer, scaled_rates(optimizer, [1.0]), settings=StepSettings(accumulate=accumulate))
        model.eval()  # batch norm sees a part at a time
        for some, own in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            loss = F.cross_entropy(worker.subnet(some), own, reduction="sum")
            worker.backward(loss * worker.accumulate / (y != -100).sum())
        worker.step()
        gradients.append(model[0].weight.detach() - build()[0].weight.detach())
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients)


def test_nothing_waits_for_another_device_in_a_step():
    """A loss on meta has no value: whoever reads it fails."""
    model = build().to("meta")
    optimizer = groups(model)
    worker = Worker(model, optimizer, scaled_rates(optimizer, [1.0] * 3), settings=StepSettings(accumulate=2))
    worker.on_labels = LabelCounts().add
    for _ in range(3):
        for _ in range(2):
            x, y = torch.empty(8, 9, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
            worker.backward(F.cross_entropy(worker.subnet(x), y), y)
        worker.step()
    assert not worker.stopped
    with pytest.raises(RuntimeError, match="meta"):
        _ = worker.loss
