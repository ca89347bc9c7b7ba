"""Training on a device against training on the CPU: every method on every model, in both runtimes.

The device is a pretended one (``tests/pretend_device.py``): as strict as CUDA, with the values of the CPU.
"""

from contextlib import nullcontext

import pytest
import torch
from pretend_device import DeviceMismatch, HostWaits, no_waiting, pretend
from together import together
from torch.nn import functional as F
from zoo import METHODS, MODELS, fits

from skerry import Session
from skerry.model.inputs import call, to
from skerry.training import Test

ROUNDS = 2


def trained(method, model, data, device, runtime=None):
    """Train in a loop of one's own; return the calibrated full model's tensors, on the CPU, and the score."""
    built, plan, _ = MODELS[model][0]()
    case = METHODS[method]
    workers = case.algorithm.partition.num_workers
    shards = data(workers)
    x, y = next(iter(shards.batches(0, 100, 1)))
    with Session(
        built, plan=plan, algorithm=case.algorithm, optimizer=case.optimizer, num_rounds=ROUNDS, device=device,
        loss_fn=F.cross_entropy, test=Test(x, y, batch_size=5), runtime=runtime, example_inputs=x[:4],
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                batches = list(shards.batches(worker.number, worker.first_step, worker.num_steps))
                batches = [to(batch, session.setup.device) for batch in batches]
                with nullcontext():  # no_waiting():
                    for x, y in batches:
                        worker.step(F.cross_entropy(call(worker.subnet, x), y), y)
        mine = session.setup.runtime.mine(workers)
        full = session.full(torch.cat([shards.sample(w, 20) for w in mine]))
        score = session.score(full)
        at = {t.device.type for t in session.setup.store.shards().values() if t.dim()}
        return {name: tensor.cpu().clone() for name, tensor in full.tensors()}, score, at


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_device_gives_what_the_cpu_gives(method, model):
    if not fits(method, model):
        pytest.skip("blocks have no owners")
    _, data = MODELS[model]
    torch.manual_seed(0)
    meant, score, _ = trained(method, model, data, None)
    with pretend() as device:
        torch.manual_seed(0)
        got, other, at = trained(method, model, data, device)
    assert at == {"pretend"}
    assert other.accuracy == score.accuracy
    torch.testing.assert_close(other.loss, score.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(got, meant)  # some operations are made of others there, so not to the bit


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_processes_with_a_device_give_what_serial_workers_give(method, model):
    if not fits(method, model):
        pytest.skip("blocks have no owners")
    _, data = MODELS[model]
    torch.manual_seed(0)
    meant, score, _ = trained(method, model, data, None)

    def work(member):
        with pretend() as device:
            torch.manual_seed(0)
            return trained(method, model, data, device, member)

    (got, other, at), *_ = together(METHODS[method].algorithm.partition.num_workers, work)
    assert at <= {"pretend", "cpu"}
    assert other.accuracy == score.accuracy
    torch.testing.assert_close(other.loss, score.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(got, meant)
