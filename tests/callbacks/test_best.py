"""Early stopping against a plain count over the scores, and the best model against its score; resumed, in processes."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stopped_runs import Stopped
from together import together
from torch.nn import functional as F
from zoo import blobs, mlp, sgd

from skerry import Checkpoints, ist, train
from skerry.callbacks import BestCheckpoint, Callback, EarlyStopping, LogFile
from skerry.runtimes import Serial
from skerry.training import Test, evaluate, net_to_train

TEST = next(iter(blobs(1, batch=60, seed=5).batches(0, 0, 1)))


def stops_at(values, patience, min_delta):
    """The slow way: look at all values before."""
    for k in range(len(values)):
        best, last = math.inf, -1
        for j, value in enumerate(values[: k + 1]):
            if best - value > min_delta:
                best, last = value, j
        if k - last >= patience:
            return k
    return None


class Fake:
    """What early stopping asks of a session."""

    def __init__(self):
        self.setup, self.state, self.test, self.stopped = self, self, None, False
        self.runtime, self.observed = Serial(), {}

    def stop(self):
        self.stopped = True


@given(
    st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0, math.nan, math.inf, -math.inf]), max_size=8), st.integers(1, 3),
    st.sampled_from([0.0, 0.5]), st.booleans(),
)  # fmt: skip
def test_it_stops_when_a_plain_count_does(values, patience, min_delta, lower):
    session, stopped = Fake(), None
    callback = EarlyStopping(patience, of="train_loss", min_delta=min_delta, lower_is_better=lower)
    session.callbacks = [callback]
    callback.on_start(session)
    for k, value in enumerate(values):
        record = type("Record", (), {"train_loss": value if lower else -value, "score": None})
        callback.on_round(session, record)
        if session.stopped:
            stopped = k
            break
    assert stopped == stops_at(values, patience, min_delta)


def go(callbacks, *, runtime=None, folder=None, resume=False, rounds=12, every=1):
    torch.manual_seed(1)
    model, plan, _ = mlp()
    checkpoints = Checkpoints(folder=folder, every_s=0, resume=resume) if folder else None
    return train(
        model, F.cross_entropy, blobs(2), plan=plan, algorithm=ist(2, local_steps=1), num_rounds=rounds,
        optimizer=sgd, test=Test(*TEST, every=every), runtime=runtime, checkpoints=checkpoints, callbacks=callbacks,
    )  # fmt: skip


def rising():
    """Stops after four rounds: the training loss is first judged as if higher were better."""
    return EarlyStopping(3, of="train_loss", lower_is_better=False)


def test_all_processes_stop_in_the_same_round_as_the_serial_runtime():
    serial = go([rising()])
    done = len(serial.history)
    assert 3 < done < 12
    results = together(2, lambda member: go([rising()], runtime=member))
    assert [len(result.history) for result in results] == [done] * 2
    assert results[0].score.loss == pytest.approx(serial.score.loss)


def test_the_values_of_the_first_process_decide():
    class Rounded(EarlyStopping):
        """As on machines that round otherwise: in the first process nothing gets better, in the other everything."""

        def on_round(self, session, record):
            super().on_round(session, replace(record, train_loss=float(record.round * session.setup.runtime.rank)))

    def work(member):
        return len(go([Rounded(2, of="train_loss", lower_is_better=False)], runtime=member, rounds=5).history)

    assert together(2, work) == [3, 3]


def test_a_resumed_training_stops_where_the_undisturbed_one_does(tmp_path):
    def on_round(session, record):
        if record.round == 2:
            raise Stopped

    meant = go([rising()])
    with pytest.raises(Stopped):
        go([rising(), Callback(on_round=on_round)], folder=tmp_path)
    resumed = go([rising()], folder=tmp_path, resume=True)
    assert resumed.state.round == meant.state.round
    assert resumed.score == meant.score
    again = go([rising()], folder=tmp_path, resume=True)  # it had stopped, so it stays so
    assert (again.history, again.score) == ([], meant.score)


def test_each_callback_has_a_memory_of_its_own(tmp_path):
    kept = [BestCheckpoint(tmp_path / name, of="accuracy") for name in ("b1", "b2")]
    go([EarlyStopping(9), *kept, EarlyStopping(2, min_delta=1e9)], rounds=4)
    assert (tmp_path / "b1/model.safetensors").read_bytes() == (tmp_path / "b2/model.safetensors").read_bytes()
    result = go([EarlyStopping(9, of="train_loss"), EarlyStopping(2, of="train_loss", min_delta=1e9)])
    assert len(result.history) == 3  # one that is better than nothing, and two


def test_a_resumed_training_may_be_more_patient(tmp_path):
    def patient(patience):
        return [EarlyStopping(patience, of="train_loss", min_delta=1e9)]

    meant = go(patient(5))
    go(patient(3), folder=tmp_path)
    resumed = go([Callback(), *patient(5)], folder=tmp_path, resume=True)
    assert resumed.state.round == meant.state.round == 6
    assert resumed.score == meant.score


def test_the_score_of_a_stop_is_in_record_file_and_checkpoint(tmp_path):
    def stopping():
        return [LogFile(tmp_path / "log.csv"), EarlyStopping(2, of="train_loss", min_delta=1e9), best]

    best = BestCheckpoint(tmp_path / "best")
    result = go(stopping(), every=0, folder=tmp_path / "run")
    assert [record.score for record in result.history] == [None, None, result.score]
    assert result.history[-1].diagnosis.full_loss is not None
    with (tmp_path / "log.csv").open() as file:
        assert [row["loss/test"] for row in csv.DictReader(file)] == ["", "", str(result.score.loss)]
    resumed = go(stopping(), every=0, folder=tmp_path / "run", resume=True)
    assert resumed.state.observed["BestCheckpoint loss 0"] == [result.score.loss, 3]


@pytest.mark.parametrize("several", [False, True])
def test_the_best_model_has_the_best_score(tmp_path, several):
    def work(runtime):
        best = BestCheckpoint(tmp_path, of="accuracy")
        return go([best, EarlyStopping(2, of="accuracy")], runtime=runtime, rounds=4)

    result = together(2, work)[0] if several else work(None)
    best = max((record.score for record in result.history), key=lambda score: score.accuracy)
    net, _ = net_to_train(*mlp()[:2], ist(2))
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ours = evaluate(net, F.cross_entropy, TEST)
    assert (ours.accuracy, ours.loss) == (best.accuracy, pytest.approx(best.loss))


def test_what_cannot_be_compared_is_told():
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(0)
    with pytest.raises(ValueError, match=r"EarlyStopping.*'acuracy'.*'accuracy'"):
        go([EarlyStopping(2, of="acuracy")])
    with pytest.warns(UserWarning, match=r"EarlyStopping: 1 evaluations in 2 rounds.*every="):
        go([EarlyStopping(2)], every=0, rounds=2)
    model, plan, _ = mlp()
    with pytest.raises(ValueError, match=r"BestCheckpoint.*test set"):
        train(
            model, F.cross_entropy, blobs(2), plan=plan, algorithm=ist(2), optimizer=sgd, num_rounds=1,
            callbacks=[BestCheckpoint("x")],
        )  # fmt: skip
