"""Going on from a checkpoint with more rounds, against a training that had them at once, and with other workers."""

import math
import re

import pytest
import torch
from mixed_tensors import all_same, copied
from together import together
from torch.nn import functional as F
from zoo import METHODS, blobs, mlp

from skerry import Checkpoints, cosine, ensemble, ist, narrow, relay, train
from skerry.algorithms import ddp, diloco, federated_dropout, local_sgd, resist
from skerry.callbacks import Callback
from skerry.checkpoint import CheckpointError
from skerry.runtimes import Serial
from skerry.runtimes.runtime import RESTING

pytestmark = pytest.mark.usefixtures("no_costs")


def go(folder, algorithm, optimizer, rounds, *, resume=False, runtime=None, **more):
    torch.manual_seed(1)
    model, plan, _ = mlp()  # without dropout, whose random state threads would share
    return train(
        model, F.cross_entropy, blobs(algorithm.partition.num_workers), plan=plan, algorithm=algorithm,
        optimizer=optimizer, num_rounds=rounds, runtime=runtime or Serial(), verify=False,
        checkpoints=Checkpoints(folder=folder, every_s=math.inf, resume=resume), **more,
    )  # fmt: skip


def ends(folder, how, method, rounds, *, resume=False):
    """What each process has at the end, its calibrated model, its counts and its bytes."""
    algorithm, optimizer = METHODS[method].algorithm, METHODS[method].optimizer

    def work(runtime):
        result = go(folder, algorithm, optimizer, rounds, runtime=runtime, resume=resume)
        shards = {n: t for n, t in copied(result.store.shards()).items() if not n.startswith(RESTING)}  # may be old
        tensors = shards | {f"calibrated {n}": t.clone() for n, t in result.full.tensors()}
        return tensors | {"trained": result.state.trained, "due": torch.tensor(result.state.totals["bytes_due"])}

    return together(3, work) if how == "processes" else [work(Serial())]


@pytest.mark.parametrize(
    ("how", "method"),
    [
        *(("serial", m) for m in ("ist-core-overlap-travel", "relay-travel", "narrow", "diloco", "fedrolex", "resist")),
        pytest.param("processes", "ist-core-overlap-travel", marks=pytest.mark.slow),
        pytest.param("processes", "fedrolex", marks=pytest.mark.slow),
    ],
)
def test_an_extended_training_is_the_longer_one(tmp_path, how, method):
    expected = ends(tmp_path / "longer", how, method, 4)
    ends(tmp_path / "extended", how, method, 2)
    extended = ends(tmp_path / "extended", how, method, 4, resume=True)
    for mine, theirs in zip(extended, expected, strict=True):
        torch.testing.assert_close(mine.pop("due"), theirs.pop("due"), rtol=0.005, atol=0)  # parts of collectors
        assert all_same(mine, theirs)


def test_a_schedule_over_the_rounds_is_told_where_it_jumps(tmp_path):
    def more(rounds, **settings):
        return go(tmp_path, ist(2, local_steps=2), METHODS["ist"].optimizer, rounds, schedule=cosine, **settings)

    more(2)
    told = r"num_rounds=4, 2 before.*spans 4 rounds.* 0 to 0\.5 at round 2$"
    with pytest.warns(UserWarning, match=told):
        more(4, resume=True)
    with pytest.raises(ValueError, match=r"num_rounds=3: 4 rounds are done"):
        more(3, resume=True)


@pytest.mark.parametrize(
    "make",
    [
        ist,
        local_sgd,
        resist,
        federated_dropout,
        lambda workers, **more: narrow(workers, width=0.5, **more),
        lambda workers, **more: ist(workers, overlap=1, optimizer_state="travel", **more),
    ],
)
@pytest.mark.parametrize("then", [1, 4])
def test_other_workers_go_on_with_the_saved_model(tmp_path, make, then):
    sgd = METHODS["ist"].optimizer
    first = go(tmp_path, make(3, local_steps=3), sgd, 3)
    begins = {}

    def on_start(session):
        begins.update(copied(session.setup.store.tensors))

    after = go(tmp_path, make(then, local_steps=3), sgd, 5, resume=True, callbacks=[Callback(on_start=on_start)])
    saved = first.store.tensors
    assert all_same(begins, {name: saved[name] for name in begins})
    assert (after.state.round, after.state.num_workers) == (5, then)
    if then == 4 and after.plan.axes and first.plan.axes:
        assert int(after.state.trained.sum()) > int(first.state.trained.sum())
    assert not all_same(copied(after.store.tensors), begins)


def test_other_workers_go_on_alike_in_both_runtimes(tmp_path):
    algorithm, sgd = ist(3, local_steps=3, overlap=2), METHODS["ist"].optimizer

    def first(runtime):
        go(tmp_path / "processes", ist(2, local_steps=3, overlap=2), sgd, 2, runtime=runtime)

    def second(runtime):
        result = go(tmp_path / "processes", algorithm, sgd, 4, resume=True, runtime=runtime)
        return {name: tensor.clone() for name, tensor in result.full.tensors()}

    together(2, first)
    go(tmp_path / "serial", ist(2, local_steps=3, overlap=2), sgd, 2)
    ours = together(3, second)[0]
    serial = go(tmp_path / "serial", algorithm, sgd, 4, resume=True)
    for name, tensor in serial.full.tensors():
        torch.testing.assert_close(ours[name], tensor)


@pytest.mark.parametrize("make", [relay, ensemble, diloco, ddp])
def test_workers_that_keep_something_must_stay(tmp_path, make):
    sgd = METHODS["ist"].optimizer
    assert re.search("worker", make(2).why_same_workers)
    if make is ddp:  # needs processes
        return
    go(tmp_path, make(2, local_steps=2), sgd, 2)
    with pytest.raises((ValueError, CheckpointError), match=r"number of nets|3 workers.*saved with 2.*'diloco'"):
        go(tmp_path, make(3, local_steps=2), sgd, 4, resume=True)


def test_other_workers_need_rounds_to_train_in(tmp_path):
    sgd = METHODS["ist"].optimizer
    go(tmp_path, ist(2, local_steps=2), sgd, 2)
    with pytest.raises(ValueError, match=r"3 workers.*saved with 2.*2 rounds are done"):
        go(tmp_path, ist(3, local_steps=2), sgd, 2, resume=True)
