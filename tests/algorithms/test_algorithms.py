"""Algorithms against what their papers say, written as a loop; and against torch's own."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from zoo import MODELS, blobs, cnn, images, mlp

from skerry import Session, discover, ensemble, ist, launch, narrow, relay, train
from skerry.algorithms import ddp, diloco, fedrolex, local_sgd
from skerry.merge import Outer
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint
from skerry.subnet import SideBySide, extract
from skerry.training import TrainingFailed, net_to_train
from skerry.weights import skeleton

ROUNDS, STEPS = 4, 5


class Doubles:
    """The blobs of the zoo in float64."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers, self._data = num_workers, blobs(num_workers)

    def batches(self, worker, first_step, num_steps):
        return ((x.double(), y) for x, y in self._data.batches(worker, first_step, num_steps))

    def sample(self, worker, num):
        return self._data.sample(worker, num).double()


def plain():
    torch.manual_seed(1)
    model, plan, _ = mlp(norm=False)
    return model.double(), plan


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)


def adamw(net):
    return torch.optim.AdamW(net.parameters(), 1e-2)


def go(algorithm, optimizer=sgd, rounds=ROUNDS, **more):
    model, plan = plain()
    train(model, more.pop("loss_fn", F.cross_entropy), Doubles(algorithm.partition.num_workers), plan=plan,
          algorithm=algorithm, optimizer=optimizer, num_rounds=rounds, **more)  # fmt: skip
    return model


def steps(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def same_weights(ours, meant, **tolerance):
    for (name, a), b in zip(ours.named_parameters(), meant.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda told, name=name: f"{name}: {told}", **tolerance)


def test_diloco_is_algorithm_1_of_the_paper():
    meant, _ = plain()
    replicas = [copy.deepcopy(meant) for _ in range(3)]
    inner = [adamw(replica) for replica in replicas]  # their state goes on from round to round
    outer = torch.optim.SGD(meant.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for round in range(ROUNDS):
        for worker, (replica, optimizer) in enumerate(zip(replicas, inner, strict=True)):
            steps(replica, optimizer, Doubles(3).batches(worker, round * STEPS, STEPS))
        for theta, *moved in zip(meant.parameters(), *(r.parameters() for r in replicas), strict=True):
            theta.grad = sum(theta.detach() - theta_i.detach() for theta_i in moved) / 3
        outer.step()
        for replica in replicas:
            replica.load_state_dict(meant.state_dict())
    same_weights(go(diloco(3, local_steps=STEPS), adamw), meant, rtol=1e-9, atol=1e-11)


def _fedavg_by_hand(meant, data, weights, mu):
    """Train ``meant``: W <- sum_w weight_w W_w / sum_w weight_w, with mu / 2 |W_w - W|^2 in the losses."""
    replicas = [copy.deepcopy(meant) for _ in weights]
    for round in range(ROUNDS):
        got = [p.detach().clone() for p in meant.parameters()]
        for worker, replica in enumerate(replicas):
            replica.load_state_dict(meant.state_dict())
            optimizer = sgd(replica)
            for x, y in data.batches(worker, round * STEPS, STEPS):
                away = sum(((p - start) ** 2).sum() for p, start in zip(replica.parameters(), got, strict=True))
                optimizer.zero_grad()
                (F.cross_entropy(replica(x), y) + mu / 2 * away).backward()
                optimizer.step()
        with torch.no_grad():
            for mean, *own in zip(meant.parameters(), *(r.parameters() for r in replicas), strict=True):
                mean.copy_(sum(n * each for n, each in zip(weights, own, strict=True)) / sum(weights))


def test_fedprox_adds_the_squared_distance_from_what_a_worker_got_to_its_loss():
    mu, (model, plan) = 3.0, plain()
    algorithm = narrow(2, local_steps=STEPS, width=0.5, proximal=mu)
    meant, _ = net_to_train(model, plan, algorithm)
    _fedavg_by_hand(meant, Doubles(2), (1, 1), mu)
    model, plan = plain()
    ours = train(model, F.cross_entropy, Doubles(2), plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=ROUNDS)
    same_weights(ours.model, meant, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="proximal=-1"):
        narrow(2, proximal=-1.0)
    with pytest.raises(ValueError, match="overlap=1"):
        narrow(2, proximal=mu, overlap=1)


class Uneven(Doubles):
    """Workers with 10, 20, 30, ... samples, as they say."""

    def num_samples(self, worker):
        return 10 * (worker + 1)


@pytest.mark.parametrize("method", [local_sgd, narrow])
def test_fedavg_weights_workers_by_their_samples(method):
    """W <- sum_w (n_w / sum_v n_v) W_w, with FedProx's term in local steps for ``narrow``."""
    mu = 3.0 if method is narrow else 0.0
    more = {"width": 0.5, "proximal": mu} if method is narrow else {}
    algorithm, (model, plan) = method(3, local_steps=STEPS, by_samples=True, **more), plain()
    meant, _ = net_to_train(model, plan, algorithm)
    meant = copy.deepcopy(meant)
    _fedavg_by_hand(meant, Uneven(3), (10, 20, 30), mu)
    given = {"plan": plan, "algorithm": algorithm, "optimizer": sgd, "num_rounds": ROUNDS}
    ours = train(plain()[0], F.cross_entropy, Uneven(3), **given)
    same_weights(ours.model, meant, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="Doubles does not tell how many samples worker 0 has"):
        train(plain()[0], F.cross_entropy, Doubles(3), **given)


def test_a_loop_of_ones_own_sets_the_number_of_samples():
    model, plan = plain()
    algorithm = local_sgd(2, local_steps=1, by_samples=True)
    session = Session(model, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=1)
    workers = next(session.rounds()).workers
    worker = next(workers)
    ((x, y),) = Doubles(2).batches(worker.number, 0, 1)
    worker.step(F.cross_entropy(worker.subnet(x), y))
    with pytest.raises(ValueError, match=r"needs worker\.num_samples"):
        next(workers)


@pytest.mark.parametrize("more", [{"overlap": 1}, {"outer": Outer()}])
def test_weights_by_samples_need_a_mean_at_the_end_of_a_round(more):
    with pytest.raises(ValueError, match="by_samples=True"):
        replace(local_sgd(2, local_steps=2, by_samples=True), **more)


def test_an_outer_step_of_rate_1_without_momentum_is_the_mean():
    meant = go(local_sgd(3, local_steps=STEPS, optimizer_state="stay"), adamw)
    same_weights(go(diloco(3, local_steps=STEPS, outer_lr=1.0, outer_momentum=0.0), adamw), meant)


def test_outer_momentum_goes_on_as_the_others_have_it_after_a_piece_was_refused():
    ((_, bad_labels),) = Doubles(3).batches(1, STEPS, 1)

    def loss_fn(output, y):
        return F.cross_entropy(output, y) * (float("nan") if y.equal(bad_labels) else 1)

    meant, _ = plain()
    outer = torch.optim.SGD(meant.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for round in range(ROUNDS):
        moved = []
        for worker in range(3):
            replica = copy.deepcopy(meant)
            plain_sgd = torch.optim.SGD(replica.parameters(), 0.1)
            steps(replica, plain_sgd, Doubles(3).batches(worker, round * STEPS, STEPS))
            moved.append(list(replica.parameters()))
        if round == 1:
            del moved[1]
        for theta, *theirs in zip(meant.parameters(), *moved, strict=True):
            theta.grad = sum(theta.detach() - theta_i.detach() for theta_i in theirs) / len(theirs)
        outer.step()
    with pytest.warns(UserWarning, match=r"refused\b.*\bworker 1\b"):
        ours = go(diloco(3, local_steps=STEPS), lambda net: torch.optim.SGD(net.parameters(), 0.1), loss_fn=loss_fn)
    same_weights(ours, meant, rtol=1e-9, atol=1e-11)


def test_what_an_outer_optimizer_keeps_counts_as_memory():
    model, plan = plain()
    weights = sum(p.nbytes for p in model.parameters())
    results = [
        train(model, F.cross_entropy, Doubles(2), plan=plan, algorithm=algorithm, optimizer=adamw, num_rounds=1)
        for algorithm in (local_sgd(2, local_steps=1), diloco(2, local_steps=1))
    ]
    assert results[1].step_cost.memory - results[0].step_cost.memory == 2 * weights


def test_state_that_stays_needs_workers_that_keep_their_units():
    with pytest.raises(ValueError, match=r"fedrolex.*keep their units"):
        go(fedrolex(3, local_steps=2, optimizer_state="stay"))


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": float("inf")}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_outer_refuses_what_cannot_converge(settings):
    with pytest.raises(ValueError, match=f"outer {next(iter(settings))}"):
        Outer(**settings)


def narrow_nets(model, plan):
    dealt = Disjoint(3).assign(plan.axes, 0)
    return [extract(model, plan, dealt.units(k)) for k in range(3)]


def test_an_ensemble_is_the_mean_of_nets_that_were_trained_alone():
    model, plan = plain()
    x, nets = torch.randn(20, 9, dtype=torch.float64), narrow_nets(model, plan)
    for worker, net in enumerate(nets):
        optimizer = sgd(net)
        for round in range(ROUNDS):
            steps(net, optimizer, Doubles(3).batches(worker, round * STEPS, STEPS))
    algorithm = ensemble(3, local_steps=STEPS)
    result = train(model, F.cross_entropy, Doubles(3), plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=ROUNDS)
    torch.testing.assert_close(result.model(x), sum(net(x) for net in nets) / 3)
    for ours, meant in zip(result.model.nets, nets, strict=True):
        same_weights(ours, meant, rtol=0, atol=0)
    assert result.state.totals["bytes_due"] == 0


def test_a_relay_is_the_mean_of_nets_that_go_from_worker_to_worker():
    model, plan = plain()
    data, x, nets = Doubles(3), torch.randn(20, 9, dtype=torch.float64), narrow_nets(model, plan)
    for round in range(ROUNDS):
        for hand, net in enumerate(nets):
            steps(net, sgd(net), data.batches((hand + round) % 3, round * STEPS, STEPS))
    algorithm = relay(3, local_steps=STEPS)
    result = train(model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=ROUNDS)
    torch.testing.assert_close(result.model(x), sum(net(x) for net in nets) / 3)
    for ours, meant in zip(result.model.nets, nets, strict=True):
        same_weights(ours, meant, rtol=0, atol=0)
    sizes = [sum(tensor.nbytes for tensor in named_tensors(net).values()) for net in nets]
    assert result.state.totals["bytes_due"] == pytest.approx((ROUNDS - 1) * sum(sizes) / 3)  # nobody needs the last


@pytest.mark.parametrize("make", [relay, ensemble])
def test_methods_of_independent_nets_leave_the_given_model_alone_and_store_nothing_between_nets(make):
    model, plan = plain()
    before = copy.deepcopy(model)
    session = Session(model, plan=plan, algorithm=make(3), optimizer=sgd, num_rounds=3, seed=5)
    same_weights(model, before, rtol=0, atol=0)
    held = sum(size.numel() for size in session.setup.store.sizes.values())
    assert held == sum(t.numel() for net in narrow_nets(model, plan) for t in named_tensors(net).values())
    assert held < sum(tensor.numel() for tensor in named_tensors(model).values())
    result = train(model, F.cross_entropy, Doubles(3), plan=plan, algorithm=make(3), optimizer=sgd, num_rounds=3)
    same_weights(model, before, rtol=0, atol=0)
    assert isinstance(result.model, SideBySide)


@pytest.mark.parametrize("make", [relay, ensemble])
def test_subnets_that_share_a_matrix_or_a_block_are_refused_before_training(make):
    model, plan = plain()
    arguments = {"algorithm": make(3), "optimizer": sgd, "num_rounds": 3}
    with pytest.raises(ValueError, match=r"out\.weight.*\bist\b"):  # on every worker where only h0 is dealt out
        Session(model, plan=plan.only("h0"), **arguments)
    of_blocks, its_plan, _ = MODELS["blocks"][0]()
    with pytest.raises(ValueError, match=r"1\.\d.*\bist\b"):
        Session(of_blocks, plan=its_plan, **arguments)
    model.register_buffer("mask", torch.ones(2, 2))  # nobody trains it
    Session(model, plan=replace(plan, shapes={**plan.shapes, "mask": torch.Size([2, 2])}), **arguments)


@pytest.mark.parametrize("make", [relay, ensemble, narrow, ist])
def test_what_is_exported_is_loaded_without_training(make, tmp_path):
    model, plan, x = mlp()
    result = train(model, F.cross_entropy, blobs(3), plan=plan, algorithm=make(3), optimizer=sgd, num_rounds=3)
    result.export(tmp_path)
    net, _ = net_to_train(skeleton(model), plan, make(3))
    net = net.to_empty(device="cpu")
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(net.eval()(x), result.model(x))


@dataclass
class Answer(OrderedDict):
    """An output as those of transformers: a dataclass and a dict."""

    logits: torch.Tensor
    steps: torch.Tensor

    def __post_init__(self):
        self["logits"], self["steps"] = self.logits, self.steps


class Answering(nn.Module):
    """Returns logits in a dataclass, beside a number that all nets agree on, or beside predictions."""

    def __init__(self, predicts):
        super().__init__()
        self.first, self.last, self.predicts = nn.Linear(9, 12), nn.Linear(12, 4), predicts

    def forward(self, x):
        logits = self.last(torch.relu(self.first(x)))
        return Answer(logits, logits.argmax(1) if self.predicts else torch.tensor(7))


@pytest.mark.parametrize("make", [relay, ensemble])
def test_outputs_of_independent_nets_keep_their_kind_and_predictions_are_refused(make):
    def loss_fn(answer, y):
        return F.cross_entropy(answer.logits, y)

    x, y = next(iter(blobs(1).batches(0, 0, 1)))
    for predicts in (False, True):
        model = Answering(predicts)
        arguments = {"algorithm": make(3, local_steps=2), "optimizer": sgd, "num_rounds": 3}
        plan = discover(model, x)
        if predicts:
            with pytest.raises(ValueError, match=r"int64.*\b3\b.*logits"):
                train(model, loss_fn, blobs(3), plan=plan, test=(x, y), **arguments)
        else:
            result = train(model, loss_fn, blobs(3), plan=plan, test=(x, y), **arguments)
            answer = result.model(x)
            assert isinstance(answer, Answer)
            torch.testing.assert_close(answer.logits, sum(net(x).logits for net in result.model.nets) / 3)
            assert answer.steps == 7


def test_ist_deals_all_anew_whatever_the_plan():
    assert ist(3, seed=5).partition == Disjoint(3, 5, reshuffle=1.0)
    assert ist(3, core=0.5).partition == Disjoint(3, core=0.5)
    assert ist(3, capacities=(1, 1, 2)).partition == Disjoint(3, capacities=(1, 1, 2))
    assert ist(3, reshuffle=0.1).partition == Disjoint(3, reshuffle=0.1)


@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("make", [relay, ensemble])
def test_the_net_of_independent_nets_is_their_mean(build, make):
    torch.manual_seed(0)
    model, plan, x = build()
    data = (images if build is cnn else blobs)(3)
    algorithm = make(3, local_steps=2)
    result = train(model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=5)
    torch.testing.assert_close(result.model(x), sum(net(x) for net in result.model.nets) / 3)


def test_ddp_is_refused_where_workers_run_one_after_the_other():
    with pytest.raises(ValueError, match="processes"):
        go(ddp(2, local_steps=2))


def beside_torch(runtime, folder):
    """Train by skerry and by torch's own wrappers, in the same processes; the first saves the differences."""
    from torch.distributed.optim import PostLocalSGDOptimizer  # warns of something else in torch when it is imported

    torch.set_num_threads(1)
    rank = runtime.rank
    ours = {}
    for name, algorithm in {
        "ddp": ddp(2, local_steps=STEPS),
        "post_local": local_sgd(2, local_steps=STEPS, optimizer_state="stay"),
        "micro-batches": ddp(2, local_steps=STEPS),
    }.items():
        model, plan = plain()
        more = {"accumulate": 2, "clip_grad_norm": 0.1} if name == "micro-batches" else {}
        result = train(model, F.cross_entropy, Doubles(2), plan=plan, algorithm=algorithm, optimizer=sgd,
                       num_rounds=ROUNDS, runtime=runtime, **more)  # fmt: skip
        ours[name] = dict(result.full.tensors())
        if name != "post_local":
            # 2 (n - 1) / n = 1 times the weights in each backward pass, and once a round with what is averaged there.
            means = STEPS * more.get("accumulate", 1) + 1
            weights = sum(p.nbytes for p in model.parameters())
            assert result.state.totals["bytes_due"] == pytest.approx(ROUNDS * means * weights, rel=0.01)
    by_torch = {}
    model, _ = plain()
    steps(DistributedDataParallel(model), sgd(model), Doubles(2).batches(rank, 0, ROUNDS * STEPS))
    by_torch["ddp"] = dict(model.named_parameters())
    model, _ = plain()
    wrapped = DistributedDataParallel(model)
    state = PostLocalSGDState(None, None, start_localSGD_iter=0, post_local_gradient_allreduce=False)
    wrapped.register_comm_hook(state, post_localSGD_hook)
    averager = PeriodicModelAverager(STEPS, warmup_steps=STEPS - 1)
    optimizer = PostLocalSGDOptimizer(sgd(model), averager)
    steps(wrapped, optimizer, Doubles(2).batches(rank, 0, ROUNDS * STEPS))
    by_torch["post_local"] = dict(model.named_parameters())
    model, _ = plain()
    wrapped, optimizer = DistributedDataParallel(model), sgd(model)
    for x, y in Doubles(2).batches(rank, 0, ROUNDS * STEPS):
        for xs, ys in zip(x.chunk(2), y.chunk(2), strict=True):
            (F.cross_entropy(wrapped(xs), ys) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    by_torch["micro-batches"] = dict(model.named_parameters())
    if rank == 0:
        worst = {k: max(float((ours[k][n] - t).abs().max()) for n, t in by_torch[k].items()) for k in ours}
        (folder / "worst").write_text(repr(worst))


def diverge(runtime, folder):
    """One worker's loss is NaN from a step of DDP on: all end alike, none waits for another."""
    torch.set_num_threads(1)
    model, plan = plain()
    seen = []

    def loss_fn(output, y):
        seen.append(1)
        return F.cross_entropy(output, y) * (float("nan") if runtime.rank == 1 and len(seen) >= 3 else 1)

    try:
        train(model, loss_fn, Doubles(2), plan=plan, algorithm=ddp(2, local_steps=STEPS), optimizer=sgd, num_rounds=3,
              max_bad_rounds=2, runtime=runtime, verify=False)  # fmt: skip
    except TrainingFailed as error:
        (folder / f"told-{runtime.rank}").write_text(str(error))


def in_processes(runtime, folder):
    beside_torch(runtime, folder)
    diverge(runtime, folder)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What two processes that did both have written: most of their time is importing torch."""
    folder = tmp_path_factory.mktemp("told")
    launch(in_processes, 2, folder)
    return folder


def test_a_loss_that_is_not_finite_does_not_leave_ddps_workers_out_of_step(told):
    assert all("not finite" in (told / f"told-{rank}").read_text() for rank in range(2))


def test_ddp_and_local_sgd_give_the_numbers_of_torch(told):
    worst = eval((told / "worst").read_text())  # our own file
    assert worst.keys() == {"ddp", "post_local", "micro-batches"}
    assert all(difference < 1e-12 for difference in worst.values()), worst


def test_training_that_fails_in_an_outer_optimizer_says_so():
    with pytest.warns(UserWarning, match="refused"), pytest.raises(TrainingFailed):
        go(diloco(2, local_steps=2), lambda net: torch.optim.SGD(net.parameters(), 1e300), rounds=8)


def test_an_outer_step_leaves_what_is_not_trained():
    model, plan = plain()
    frozen = model.layers[0].weight.requires_grad_(False).clone()
    train(model, F.cross_entropy, Doubles(2), plan=plan, algorithm=diloco(2, local_steps=2), num_rounds=2,
          optimizer=lambda net: torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2))  # fmt: skip
    assert torch.equal(model.layers[0].weight, frozen)
