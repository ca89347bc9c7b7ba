"""Training on a device against training on the CPU: every method on every model, in both runtimes.

The device is a pretended one (``tests/pretend_device.py``): as strict as CUDA, with the values of the CPU.
"""

from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from pretend_device import backend, no_waiting, pretend
from together import together
from torch.nn import functional as F
from zoo import METHODS, MODELS, fits, images

from skerry import Session, ist, train
from skerry.checkpoint import Checkpoints
from skerry.model.device import chosen_device
from skerry.model.inputs import call, to
from skerry.model.optimizer_state import load_
from skerry.model.tensors import skeleton
from skerry.randomness import own_random_state
from skerry.sklearn import Classifier
from skerry.training import Test
from skerry.weights import FromInitializer

ALWAYS = {("relay", "cnn"), ("resist", "blocks")}
FEW = {
    "ist",
    "ist-core-overlap-travel",
    "ist-uneven-travel",
    "diloco",
    "narrow",
    "fedrolex",
    "heterofl",
    "relay-travel",
}
CASES = [
    pytest.param(
        method,
        model,
        marks=[] if (model == "mlp" and method in FEW) or (method, model) in ALWAYS else pytest.mark.slow,
    )
    for method in METHODS
    for model in MODELS
    if fits(method, model)
]
# Overlap waits within local steps, where threads share dropout's random state; and Adam turns the rounding errors that
# are the whole gradient of a bias before a batch norm into steps. Images have neither.
IN_THREADS = [
    ("fedrolex", "mlp"),
    *(pytest.param(*case, marks=pytest.mark.slow)
      for case in (("ist-core-overlap-travel", "cnn"), ("ist", "blocks"), ("relay", "mlp"), ("diloco", "mlp"))),
]  # fmt: skip


def trained(method, model, device=None, runtime=None):
    """Train in a loop of one's own; return the full model's tensors, its score, and where everything was."""
    torch.manual_seed(0)
    (build, data), case = MODELS[model], METHODS[method]
    built, plan, _ = build()
    workers = case.algorithm.partition.num_workers
    shards = data(workers)
    x, y = next(iter(shards.batches(0, 100, 1)))
    with Session(
        built, plan=plan, algorithm=case.algorithm, optimizer=case.optimizer, num_rounds=2, device=device,
        loss_fn=F.cross_entropy, test=Test(x, y, batch_size=5), runtime=runtime, example_inputs=x[:4],
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                batches = shards.batches(worker.number, worker.first_step, worker.num_steps)
                batches = [to(batch, session.setup.device) for batch in batches]
                # With overlap a process waits for the others' messages.
                with nullcontext() if runtime is not None and case.algorithm.overlap else no_waiting():
                    for x, y in batches:
                        worker.step(F.cross_entropy(call(worker.subnet, x), y), y)
        full = session.full(torch.cat([shards.sample(w, 20) for w in session.setup.runtime.mine(workers)]))
        score = session.score(full)
        at = {t.device.type for t in session.setup.store.shards().values() if t.dim()}
        return {name: tensor.cpu().clone() for name, tensor in full.tensors()}, score, at


on_cpu = cache(trained)


def assert_same(method, model, tensors, score):
    meant, meant_score, _ = on_cpu(method, model)
    assert score.accuracy == meant_score.accuracy
    assert score.loss == pytest.approx(meant_score.loss, rel=1e-5)
    torch.testing.assert_close(tensors, meant)  # some operations are made of others there, so not to the bit


@pytest.mark.parametrize(("method", "model"), CASES)
def test_a_device_gives_what_the_cpu_gives(method, model):
    with pretend() as device:
        tensors, score, at = trained(method, model, device)
    assert at == {"pretend"}
    assert_same(method, model, tensors, score)


@pytest.mark.parametrize(("method", "model"), IN_THREADS)
def test_processes_with_a_device_give_what_serial_workers_give(method, model):
    def work(member):
        with pretend() as device:
            return trained(method, model, device, member)

    with pretend():  # torch has one flag for all threads that says whether a mode is on; this puts it back
        of_all = together(METHODS[method].algorithm.partition.num_workers, work)
    assert {place for _, _, at in of_all for place in at} <= {"pretend", "cpu"}
    tensors, score, _ = of_all[0]  # the first process reads the full model
    assert_same(method, model, tensors, score)


def test_a_device_seeds_no_other_random_state():
    """The caller's random states, on the CPU and on devices, are what they would have been without the training."""
    with pretend() as device:
        torch.manual_seed(5)
        before = torch.get_rng_state(), backend.state
        draws = []
        with own_random_state(7, device):
            draws.append((float(torch.rand(())), backend.state))
        assert (torch.equal(before[0], torch.get_rng_state()), backend.state) == (True, before[1])
        with own_random_state(7):  # of the CPU only
            draws.append((float(torch.rand(())), backend.state))
        assert draws == [(draws[0][0], 7), (draws[0][0], before[1])]


@pytest.mark.parametrize("device", ["gpu", "cuda:7", "meta", 1.5])
def test_a_device_that_cannot_be_used_is_named(device):
    with pytest.raises(ValueError, match=f"device='{device}': it cannot be used here .*; expected cpu, cuda") as told:
        chosen_device(device)
    assert len(str(told.value)) < 250


def test_a_model_on_meta_trains_where_it_is_told():
    built, plan, _ = MODELS["mlp"][0]()
    with pretend() as device, Session(
        skeleton(built), plan=plan, algorithm=ist(2, local_steps=1), optimizer=METHODS["ist"].optimizer, num_rounds=1,
        device=device, start=lambda m: FromInitializer(m, seed=0),
    ) as session:  # fmt: skip
        assert {t.device for t in session.setup.store.shards().values()} == {device}


@pytest.mark.parametrize("name", ["adamw", "fused"])
def test_step_counts_are_where_the_optimizer_wants_them(name):
    """Adam counts steps on the CPU, but on the device where it is fused; state that travels is brought there."""
    with pretend() as device:
        net = torch.nn.Linear(2, 2).to(device)
        optimizer = torch.optim.AdamW(net.parameters())
        optimizer.param_groups[0]["fused"] = name == "fused"
        load_(optimizer, net, {"weight::step": torch.ones(()), "weight::exp_avg": torch.ones(2, 2, device=device)})
        state = optimizer.state[net.weight]
        assert state["exp_avg"].device == device
        assert (state["step"].device == device) == (name == "fused")


@pytest.mark.slow
def test_a_run_goes_on_with_another_device(tmp_path):
    """Checkpoints are the same wherever they were written: on a device or on the CPU, with optimizer state."""
    x, y = next(iter(images(1).batches(0, 0, 1)))

    def run(folder, device, rounds, resume=False):
        torch.manual_seed(0)
        built, plan, _ = MODELS["cnn"][0]()
        case = METHODS["ist-uneven-travel"]
        result = train(
            built, F.cross_entropy, images(3), plan=plan, algorithm=case.algorithm, optimizer=case.optimizer,
            num_rounds=rounds, device=device, test=Test(x, y, every=1),
            checkpoints=Checkpoints(folder=tmp_path / folder, every_s=0, resume=resume),
        )  # fmt: skip
        assert result.score.count == len(y)
        return {name: tensor.cpu().clone() for name, tensor in result.full.tensors()}

    meant = run("cpu", None, 4)
    with pretend() as device:
        run("first there", device, 2)
        run("then there", None, 2)
        torch.testing.assert_close(run("then there", device, 4, resume=True), meant)
        exported = run("first there", "cpu", 4, resume=True)
    torch.testing.assert_close(exported, meant)


def test_estimators_train_and_predict_on_a_device():
    x, y = np.random.default_rng(0).normal(size=(60, 5)), [0, 1] * 30
    with pretend() as device:
        net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        fitted = Classifier(net, workers=2, epochs=1, device=device).fit(x, y)
        assert {p.device for p in fitted.model_.parameters()} == {device}
        assert len(fitted.predict(x)) == 60
