"""A loop of one's own over a session: against ``train`` on the same batches, to the bit, in every runtime."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from zoo import METHODS, MODELS, blobs, mlp, sgd

from skerry import Checkpoints, Processes, Session, cosine, ensemble, ist, launch, narrow, relay, train
from skerry.algorithms import diloco, single
from skerry.runtimes import Serial
from skerry.training import TheoryWarning, TrainingFailed, constant
from skerry.training.train import calibration_inputs

ROUNDS = 3


def built(model_name, algorithm):
    build, data = MODELS[model_name]
    torch.manual_seed(1)
    model, plan, _ = build()
    return model, plan, data(algorithm.partition.num_workers), next(iter(data(1).batches(0, 0, 1)))


def by_session(method, model_name, runtime, *, stop_after=ROUNDS, folder=None, checkpoints=None):
    """What ``train`` does, written out; return what it leaves."""
    algorithm = METHODS[method].algorithm
    model, plan, data, test = built(model_name, algorithm)
    losses = []
    with Session(
        model, plan=plan, algorithm=algorithm, optimizer=METHODS[method].optimizer, num_rounds=ROUNDS,
        schedule=cosine, runtime=runtime, checkpoints=checkpoints,
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                for x, y in data.batches(worker.number, worker.first_step, worker.num_steps):
                    worker.step(F.cross_entropy(worker.subnet(x), y))
            losses.append(round.train_loss)
            if round.number + 1 == stop_after and checkpoints is not None:
                break
    full = session.full(*calibration_inputs(data, runtime.mine(algorithm.partition.num_workers)))
    score = session.score(full, F.cross_entropy, test)
    if folder is not None:
        session.export(full, folder)
    return dict(session.setup.store.shards()), dict(full.tensors()), losses, score, session.state


def by_train(method, model_name, runtime, folder=None):
    algorithm = METHODS[method].algorithm
    model, plan, data, test = built(model_name, algorithm)
    result = train(
        model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=METHODS[method].optimizer,
        num_rounds=ROUNDS, schedule=cosine, runtime=runtime, test=test,
    )  # fmt: skip
    if folder is not None:
        result.export(folder)
    losses = [record.train_loss for record in result.history]
    return dict(result.store.shards()), dict(result.full.tensors()), losses, result.score, result.state


def assert_same(ours, meant):
    for some, others in zip(ours[:2], meant[:2], strict=True):
        assert some.keys() == others.keys()
        assert all(torch.equal(some[name], others[name]) for name in others)
    assert ours[2:4] == meant[2:4]
    assert torch.equal(ours[4].trained, meant[4].trained)
    assert ours[4].totals["bytes_due"] == meant[4].totals["bytes_due"]


@pytest.mark.parametrize(
    ("method", "model"), [("ist-uneven-travel", "mlp"), ("local_sgd", "cnn"), ("resist", "blocks")]
)
def test_a_loop_of_ones_own_gives_the_bits_of_train(method, model):
    assert_same(by_session(method, model, Serial()), by_train(method, model, Serial()))


def both_ways(runtime: Processes, folder):
    torch.set_num_threads(1)
    for method in ("ist-uneven-travel", "ist-core-overlap-travel", "diloco"):
        ours = by_session(method, "mlp", runtime, folder=folder / "session" / method)
        assert_same(ours, by_train(method, "mlp", runtime, folder / "train" / method))


@pytest.mark.slow
def test_a_loop_of_ones_own_gives_the_bits_of_train_in_processes(tmp_path):
    launch(both_ways, 3, tmp_path)
    files = sorted(p.relative_to(tmp_path / "train") for p in (tmp_path / "train").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        ours, meant = load_file(tmp_path / "session" / file), load_file(tmp_path / "train" / file)
        assert all(torch.equal(ours[name], tensor) for name, tensor in meant.items())


def test_a_session_resumes_where_its_last_checkpoint_was(tmp_path):
    kept = [Checkpoints(folder=tmp_path, every_s=0, resume=resume) for resume in (False, True)]
    # Left by break after the second round: its checkpoint is not written, the first one's is.
    by_session("ist-uneven-travel", "mlp", Serial(), stop_after=2, checkpoints=kept[0])
    ours = by_session("ist-uneven-travel", "mlp", Serial(), checkpoints=kept[1])
    meant = by_train("ist-uneven-travel", "mlp", Serial())
    assert len(ours[2]) == 2
    assert ours[2] == meant[2][1:]
    assert all(torch.equal(ours[1][name], tensor) for name, tensor in meant[1].items())


def new_session(algorithm, *, rounds=ROUNDS, build=lambda: mlp(dropout=0.5), **more):
    torch.manual_seed(1)
    model, plan, _ = build()
    settings = {"optimizer": sgd, "num_rounds": rounds} | more
    return model, Session(model, plan=plan, algorithm=algorithm, **settings)


def some(worker, num=None, *, workers=3):
    return blobs(workers).batches(worker.number, worker.first_step, worker.num_steps if num is None else num)


def go(session, *, steps=None, factor=1.0, turn=lambda worker: True):
    """Train; leave a round's workers where ``turn`` says so."""
    with session:
        for round in session.rounds():
            for worker in round.workers:
                if not turn(worker):
                    break
                for x, y in some(worker, steps):
                    worker.step(F.cross_entropy(worker.subnet(x), y) * factor)


@pytest.mark.parametrize(
    ("steps", "figures"),
    [(5, r"(?!.*\b3\b)"), (3, r"(?=.*\b3\b)")],
)
def test_another_number_of_steps_than_the_algorithms_is_refused(steps, figures):
    _, session = new_session(ist(3, local_steps=4))
    with pytest.raises(ValueError, match=rf"(?=.*\bworker 0\b)(?=.*\bround 0\b){figures}(?=.*\b4\b).*\blocal_steps\b"):
        go(session, steps=steps)


def test_a_round_whose_workers_were_not_all_trained_is_refused():
    _, session = new_session(ist(3, local_steps=4))
    with pytest.raises(ValueError, match=r"round 0\b.*\bround\.workers\b"):
        go(session, turn=lambda worker: worker.number < 2)


def test_a_session_leaves_the_global_random_state_alone_also_when_the_loop_fails():
    inside = []

    def turn(worker):
        inside.append(torch.rand(1).item())
        if len(inside) == 5:
            raise KeyError
        return True

    _, session = new_session(ist(3, local_steps=4))
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        go(session, turn=turn)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(inside)) == 5


def test_a_worker_that_had_its_turn_keeps_no_memory():
    _, session = new_session(ist(3, local_steps=1), rounds=1)
    with session:
        for round in session.rounds():
            for worker in round.workers:
                ((x, y),) = some(worker)
                worker.step(F.cross_entropy(worker.subnet(x), y))
    assert not [v for v in vars(worker).values() if isinstance(v, torch.Tensor | nn.Module | torch.optim.Optimizer)]


def test_gradients_may_be_gathered_and_clipped():
    def clipping(optimizer, args, kwargs):
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)

    def train_one(clip, parts):
        torch.manual_seed(1)
        model, plan, _ = mlp(norm=False)
        with Session(
            model, plan=plan, algorithm=single(local_steps=2), num_rounds=1,
            optimizer=lambda net: torch.optim.SGD(net.parameters(), 1.0),
        ) as session:  # fmt: skip
            for round in session.rounds():
                for worker in round.workers:
                    if clip:
                        worker.optimizer.register_step_pre_hook(clipping)
                    for x, y in some(worker, workers=1):
                        halves = list(zip(x.chunk(parts), y.chunk(parts), strict=True))
                        for part, labels in halves[:-1]:
                            (F.cross_entropy(worker.subnet(part), labels) / parts).backward()
                        worker.step(F.cross_entropy(worker.subnet(halves[-1][0]), halves[-1][1]) / parts)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(train_one(False, 2), train_one(False, 1))
    torch.manual_seed(1)
    start = torch.cat([p.detach().flatten() for p in mlp(norm=False)[0].parameters()])
    # Two steps at rate 1 with gradients of norm .01 lead at most that far.
    assert (train_one(True, 1) - start).norm() <= 0.02 + 1e-6 < (train_one(False, 1) - start).norm()


def test_the_full_model_wants_inputs_where_there_is_a_batch_norm():
    _, session = new_session(ist(3), rounds=1)
    with pytest.raises(ValueError, match=r"full\(\).*\bnorms\.0\b.*\binputs\b"):
        session.full()
    model, session = new_session(ist(3), rounds=1, build=lambda: mlp(norm=False))
    assert session.full().whole() is not model


def test_a_plan_that_is_wrong_is_found_where_there_are_example_inputs():
    def build():
        model, plan, _ = mlp(norm=False)
        model.norms[0] = nn.LayerNorm(13, elementwise_affine=False)
        return model, plan, None

    _, session = new_session(ist(3), build=build)  # not verified
    assert session.state.round == 0
    with pytest.raises(ValueError, match="axis 'h0'"):
        new_session(ist(3), build=build, example_inputs=torch.randn(4, 9))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_short_run_in_which_every_piece_was_refused_fails(rounds):
    message = rf"round {rounds - 1}\b.*\b{rounds}\b.*\b0, 1, 2\b"
    _, session = new_session(ist(3, local_steps=2), rounds=rounds)
    with (
        pytest.warns(TheoryWarning, match=r"^refused: .*\b0, 1, 2 in round 0\b") as told,
        pytest.raises(TrainingFailed, match=message),
    ):
        go(session, factor=math.nan)
    assert len(told) == 1  # once per kind
    model, plan, _ = mlp()
    with pytest.raises(TrainingFailed, match=message):
        train(
            model, lambda output, y: F.cross_entropy(output, y) * math.nan, blobs(3), plan=plan,
            algorithm=ist(3, local_steps=2), optimizer=sgd, num_rounds=rounds, schedule=constant,
            verify=False,
        )  # fmt: skip


@pytest.mark.parametrize("make", [ist, narrow, ensemble, diloco, relay])
def test_what_a_loop_does_to_a_worker_is_gone_after_its_round(make):
    model, plan, _ = mlp()
    called = []
    session = Session(model, plan=plan, algorithm=make(3, local_steps=2), optimizer=sgd, num_rounds=3)
    data = blobs(3)
    for round in session.rounds():
        for worker in round.workers:
            assert all(p.requires_grad for p in worker.subnet.parameters())
            worker.optimizer.register_step_pre_hook(lambda *_: called.append("step"))
            worker.subnet.register_forward_hook(lambda *_: called.append("forward"))
            worker.subnet.counted = getattr(worker.subnet, "counted", 0) + 1
            assert worker.subnet.counted == 1
            called.clear()
            for x, y in data.batches(worker.number, worker.first_step, worker.num_steps):
                worker.step(F.cross_entropy(worker.subnet(x), y))
            assert called == ["forward", "step"] * 2
            next(worker.subnet.parameters()).requires_grad_(False)
