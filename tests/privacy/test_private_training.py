"""Private training: against a plain loop, resumed, in several processes; what it accounts for, and what it refuses."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mixed_tensors import copied
from stopped_runs import Stopped
from together import together
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zoo import blobs

from skerry import Checkpoints, Clients, Private, Session, discover, ensemble, ist, relay, train
from skerry.algorithms import ddp, local_sgd, single
from skerry.callbacks import Callback
from skerry.experiments.config import Config
from skerry.experiments.runs.folder import metrics_line
from skerry.privacy import PrivateRun, accountant
from skerry.privacy.accountant import epsilon, noise_for
from skerry.runtimes import Serial
from skerry.runtimes.elastic.generation import Generation
from skerry.training import log_priors
from skerry.training.check import check_private
from skerry.training.steps.settings import StepSettings

pytest.importorskip("opacus")
pytestmark = pytest.mark.usefixtures("no_costs")
ROUNDS, STEPS = 4, 3
KNOWN = Private(noise_multiplier=1.5, max_grad_norm=0.5, seed=5)


def net(norm=False):
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(12)] if norm else []
    return nn.Sequential(nn.Linear(9, 12), *middle, nn.ReLU(), nn.Linear(12, 4))


def go(algorithm, privacy=KNOWN, *, model=None, parts=None, num_rounds=ROUNDS, data=None, **more):
    model = model or net()
    data = data or blobs(parts or algorithm.num_parts)
    return train(
        model, F.cross_entropy, data, plan=discover(model, torch.randn(4, 9)), algorithm=algorithm,
        optimizer=lambda n: torch.optim.SGD(n.parameters(), 0.1, momentum=0.5), num_rounds=num_rounds,
        privacy=privacy, **more,
    )  # fmt: skip


def test_without_noise_and_bound_it_is_ordinary_training_on_the_same_batches():
    loose = Private(noise_multiplier=0.0, max_grad_norm=1e6, seed=5)
    result = go(single(local_steps=STEPS), loose, parts=1, accumulate=2)
    plain, data = net(), blobs(1).poisson(5)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.5)
    for x, y in data.batches(0, 0, ROUNDS * STEPS):
        optimizer.zero_grad()
        (F.cross_entropy(plain(x), y, reduction="sum") / 16).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert result.history[-1].epsilon == (math.inf,)


def test_a_worker_s_epsilon_is_that_of_its_own_steps_by_opacus():
    from opacus.accountants import RDPAccountant

    parts = [torch.arange(0, 40), torch.arange(40, 240)]
    data = blobs(1)
    data = type(data)(data._x, data._y, parts, batch_size=16, seed=0)
    result = go(relay(2, local_steps=STEPS), data=data)
    for found, part in zip(result.history[-1].epsilon, parts, strict=True):
        theirs = RDPAccountant()
        for _ in range(ROUNDS * STEPS):
            theirs.step(noise_multiplier=1.5, sample_rate=16 / len(part))
        assert found == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)
    first, *_, last = (record.epsilon for record in result.history)
    assert all(a < b for a, b in zip(first, last, strict=True))


def test_the_noise_of_a_target_reaches_it_and_not_more(monkeypatch):
    monkeypatch.setattr(accountant, "_ORDERS", [1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 32, 64])  # takes less time
    result = go(ist(2, local_steps=STEPS), Private(target_epsilon=3.0, seed=0))
    assert 2.95 < max(result.history[-1].epsilon) <= 3.0


def test_noise_is_kept_while_it_is_enough_and_raised_where_more_steps_come(monkeypatch):
    monkeypatch.setattr(accountant, "_ORDERS", [1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 32, 64])  # takes less time
    noise = noise_for(3.0, 1e-5, 0.1, 50, ())
    begun = ((noise, 0.1, 20),)
    assert noise_for(3.0, 1e-5, 0.1, 30, begun) == noise
    more = noise_for(3.0, 1e-5, 0.1, 80, begun)
    assert more > noise
    assert 2.95 < epsilon((*begun, (more, 0.1, 80)), 1e-5) <= 3.0
    with pytest.raises(ValueError, match=r"have reached epsilon .* expected less than target_epsilon=3"):
        noise_for(3.0, 1e-5, 0.1, 1, ((noise, 0.1, 60),))


def test_a_client_s_epsilon_counts_its_own_turns_only():
    algorithm = local_sgd(2, local_steps=STEPS)
    algorithm = type(algorithm)(**{**vars(algorithm), "clients": Clients((1.0,) * 5, seed=0)})
    result = go(algorithm)
    timeline = algorithm.timeline()
    turns = [turn.client for round in range(ROUNDS) for turn in timeline.turns(round)]
    expected = [epsilon(((1.5, 16 / 48, turns.count(client) * STEPS),), 1e-5) for client in range(5)]
    assert list(result.history[-1].epsilon) == pytest.approx(expected)
    assert 0.0 in expected or len(set(expected)) > 1


def resumed(privacy, folder, algorithm, runtime, *, cut=True, num_rounds=ROUNDS):
    """Return what a run has that is cut in its third round and goes on, or (``cut=False``) one that is not."""

    def on_round(session, record):
        if record.round == 2:
            raise Stopped

    if cut:
        with pytest.raises(Stopped):
            go(algorithm, privacy, runtime=runtime, checkpoints=Checkpoints(folder, every_s=1e6),
               callbacks=[Callback(on_round=on_round)])  # fmt: skip
    result = go(algorithm, privacy, runtime=runtime, num_rounds=num_rounds, checkpoints=Checkpoints(folder, resume=cut))
    tensors = copied(result.store.shards()) | {n: t.clone() for n, t in result.full.tensors()}
    return tensors, result.history[-1].epsilon


@pytest.mark.parametrize("algorithm", [ist(2, local_steps=STEPS), relay(2, local_steps=STEPS)], ids=["ist", "relay"])
def test_resume_is_exact_and_processes_have_the_serial_bits(algorithm, tmp_path):
    whole, spent = resumed(KNOWN, tmp_path / "a", algorithm, Serial(), cut=False)
    again, spent_again = resumed(KNOWN, tmp_path / "b", algorithm, Serial())
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert spent == spent_again
    result = together(2, lambda member: resumed(KNOWN, tmp_path / "c", algorithm, member, cut=False))
    full = {name: t for name, t in result[0][0].items() if name in net().state_dict() or name.startswith("nets.")}
    assert full
    assert all(torch.equal(whole[name], t) for name, t in full.items())
    assert result[0][1] == result[1][1] == spent


def test_every_attempt_at_a_round_is_in_the_account(tmp_path):
    secret = Private(noise_multiplier=0.0)  # its epsilon takes no time
    algorithm, begun = ist(2, local_steps=STEPS), []
    for last in (0, 1, 1, 1, ROUNDS):

        def on_step(session, worker, loss, last=last):
            begun.append(worker.round)
            if worker.round == last:
                raise Stopped

        with pytest.raises(Stopped) if last < ROUNDS else nullcontext():
            result = go(algorithm, secret, callbacks=[Callback(on_step=on_step)],
                        checkpoints=Checkpoints(tmp_path, resume=True))  # fmt: skip
    assert begun[:1] == [0]
    attempts, resumes = 2 + 4 + (ROUNDS - 2), 4
    for owner in range(2):
        assert result.state.observed[f"private steps of owner {owner}"][2] == (attempts + resumes) * STEPS


@pytest.mark.slow
def test_rounds_that_a_resume_repeats_with_other_noise_count_twice(tmp_path):
    secret = Private(noise_multiplier=1.5, max_grad_norm=0.5)
    _, spent = resumed(secret, tmp_path, ensemble(2, local_steps=STEPS), Serial())
    twice = epsilon(((1.5, 16 / 120, (ROUNDS + 2) * STEPS),), 1e-5)
    assert spent == pytest.approx((twice, twice))
    target = Private(target_epsilon=3.0)
    _, spent = resumed(target, tmp_path / "target", ensemble(2, local_steps=STEPS), Serial())
    assert 2.9 < max(spent) <= 3.0


def test_no_run_is_like_another_without_a_seed():
    secret = Private(noise_multiplier=1.0)
    first, second = (go(ensemble(2, local_steps=1), secret, num_rounds=1).model.state_dict() for _ in range(2))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_what_tells_of_the_samples_is_not_reported():
    losses = []
    data = blobs(2)
    data._x[:7] = math.nan
    result = go(
        relay(2, local_steps=STEPS), data=data,
        callbacks=[Callback(on_step=lambda session, worker, loss: losses.append(float(loss)))],
    )  # fmt: skip
    assert len(losses) == 2 * ROUNDS * STEPS
    assert all(map(math.isnan, losses))
    for record in result.history:
        assert math.isnan(record.train_loss)
        assert record.refused == ()
        assert record.diagnosis.label_skew is None
        assert metrics_line(record, {})["epsilon"] == list(record.epsilon)


def test_a_loop_of_your_own_takes_private_steps_only():
    model, private = net(), PrivateRun.of(KNOWN, blobs(2))
    expected = go(ist(2, local_steps=STEPS), num_rounds=1).model.state_dict()
    x, y = next(iter(blobs(2).batches(0, 0, 1)))
    with Session(
        model, plan=discover(model, x), algorithm=ist(2, local_steps=STEPS), num_rounds=1, private=private,
        optimizer=lambda n: torch.optim.SGD(n.parameters(), 0.1, momentum=0.5),
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:
                with pytest.raises(ValueError, match=r"training is private; call worker.private_step"):
                    worker.step(F.cross_entropy(worker.subnet(x), y))
                for batch in private.data.batches(worker.client, worker.first_step, worker.num_steps):
                    worker.private_step(F.cross_entropy, batch)
                with pytest.raises(ValueError, match="one step more"):
                    worker.private_step(F.cross_entropy, batch)
        found = session.full().whole().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def loaders():
    own = TensorDataset(torch.randn(32, 9), torch.zeros(32, dtype=torch.int64))
    return [DataLoader(own, batch_size=8) for _ in range(2)]


REFUSED = {
    "batch norm": (lambda: go(ist(2), model=net(norm=True)), "1 is a BatchNorm1d, whose statistics mix"),
    "clip": (lambda: go(ist(2), clip_grad_norm=1.0), "clip_grad_norm=1.0 does not go with private steps"),
    "precision": (lambda: go(ist(2), precision="bf16"), "precision='bf16' does not go"),
    "ddp": (lambda: go(ddp(2, local_steps=1)), "averages gradients in every step"),
    "priors": (lambda: go(ist(2), logit_adjustment=log_priors(blobs(2)._y, blobs(2)._parts, 4)), "tells of a worker's"),
    "loaders": (lambda: go(ist(2), data=loaders()), "FromLoaders cannot draw each sample independently"),
    "a dict": (lambda: go(ist(2), {"target_epsilon": 2.0}), "got dict, expected skerry.Private"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_private_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_elastic_runs_are_refused():
    given = SimpleNamespace(
        model=net(), steps=StepSettings(), algorithm=ist(2), runtime=mock.create_autospec(Generation, instance=True)
    )
    with pytest.raises(ValueError, match="samples change their owners"):
        check_private(given)


def test_a_training_is_private_from_its_first_round_to_its_last(tmp_path):
    algorithm = ist(2, local_steps=1)
    go(algorithm, None, num_rounds=1, checkpoints=Checkpoints(tmp_path / "a"))
    with pytest.raises(ValueError, match="the first 1 rounds of the saved training were not private"):
        go(algorithm, num_rounds=2, checkpoints=Checkpoints(tmp_path / "a", resume=True))
    go(algorithm, num_rounds=1, checkpoints=Checkpoints(tmp_path / "b"))
    with pytest.raises(ValueError, match="the saved training is private"):
        go(algorithm, None, num_rounds=2, checkpoints=Checkpoints(tmp_path / "b", resume=True))
    with pytest.raises(ValueError, match="3 workers, but the training was saved with 2"):
        go(ist(3, local_steps=1), num_rounds=2, checkpoints=Checkpoints(tmp_path / "b", resume=True))


def test_a_config_asks_for_it():
    assert Config().private.asked_for is None
    config = Config().change({"private.target_epsilon": 4, "private.seed": 0})
    assert config.private.asked_for == Private(target_epsilon=4.0, seed=0)
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match=r"target_epsilon=4: expected one of the two; set the other one to null"):
        config.change({"private.noise_multiplier": 1.0})
    other = config.change({"private.noise_multiplier": 1.0, "private.target_epsilon": None})
    assert other.private.asked_for == Private(noise_multiplier=1.0, seed=0)


@pytest.mark.parametrize("settings", [{"private.max_grad_norm": 0.5, "private.delta": 1e-6}, {"private.seed": 0}])
def test_settings_of_privacy_without_any_are_refused(settings):
    with pytest.raises(ValueError, match=r"nothing is private; expected private.noise_multiplier or"):
        Config().change(settings)
    assert Config().change({**settings, "private.noise_multiplier": 1.0}).private.asked_for is not None
