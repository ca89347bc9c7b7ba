"""What a training calls, and when: in ``train``, in a loop of one's own, after failures and in processes."""

import pytest
import torch
from stopped_runs import Stopped
from together import together
from torch.nn import functional as F
from zoo import blobs, mlp, sgd

from skerry import Checkpoints, Session, ist, train
from skerry.callbacks import Callback, EarlyStopping
from skerry.callbacks.logger import figures
from skerry.training import Test

ROUNDS, STEPS, WORKERS = 3, 2, 3


class Seen(Callback):
    """Notes every call."""

    def __init__(self, draws: bool = False):
        self.calls, self._draws = [], draws

    def _note(self, hook, *more):
        self.calls.append((hook, *more))
        if self._draws:
            torch.rand(3)

    def on_start(self, session):
        self._note("start", session.state.round)

    def on_step(self, session, worker, loss):
        self._note("step", worker.round, worker.number, float(loss))

    def on_evaluate(self, session, score, full):
        self._note("evaluate", score.loss, len(dict(full.tensors())))

    def on_round(self, session, record):
        self._note("round", record.round, record.train_loss, record.score)

    def on_end(self, session, error):
        self._note("end", type(error))


def settings():
    torch.manual_seed(1)
    model, plan, _ = mlp()
    test = Test(*next(iter(blobs(1, seed=5).batches(0, 0, 1))), every=2)
    return model, {
        "plan": plan, "algorithm": ist(WORKERS, local_steps=STEPS), "optimizer": sgd, "num_rounds": ROUNDS,
        "test": test,
    }  # fmt: skip


def by_train(callbacks, **more):
    model, given = settings()
    return train(model, F.cross_entropy, blobs(WORKERS), **{**given, **more}, callbacks=callbacks)


def by_loop(callbacks):
    model, given = settings()
    data = blobs(WORKERS)
    with Session(model, loss_fn=F.cross_entropy, **given, callbacks=callbacks) as session:
        for round in session.rounds():
            for worker in round.workers:
                for x, y in data.batches(worker.number, worker.first_step, worker.num_steps):
                    worker.step(F.cross_entropy(worker.subnet(x), y), y)
            if round.number in (1, 2):
                session.score(session.full(*[data.sample(w, 2048 // WORKERS) for w in range(WORKERS)]))
    return session


def test_every_hook_is_called_in_order():
    seen = Seen()
    result = by_train([seen])
    steps = [[("step", t, w) for w in range(WORKERS) for _ in range(STEPS)] for t in range(ROUNDS)]
    expected = [
        ("start", 0), *steps[0], ("round", 0), *steps[1], ("evaluate",), ("round", 1), *steps[2], ("evaluate",),
        ("round", 2), ("end", type(None)),
    ]  # fmt: skip
    assert [call[: len(meant)] for call, meant in zip(seen.calls, expected, strict=True)] == expected
    assert [record.score for record in result.history] == [call[3] for call in seen.calls if call[0] == "round"]
    losses = [call[3] for call in seen.calls if call[:2] == ("step", 1)]
    assert result.history[1].train_loss == pytest.approx(sum(losses) / len(losses))


def test_a_loop_of_ones_own_calls_the_same():
    ours, meant = Seen(), Seen()
    session = by_loop([ours])
    result = by_train([meant])
    meant.calls = [call[:1] if call[0] == "evaluate" else call[:3] for call in meant.calls]  # calibrated apart
    assert [call[:1] if call[0] == "evaluate" else call[:3] for call in ours.calls] == meant.calls
    assert [r.train_loss for r in session.history] == [r.train_loss for r in result.history]


def test_what_a_callback_draws_changes_no_bit():
    ours, meant = (by_train([Seen(draws)]).store.shards() for draws in (True, False))
    assert all(torch.equal(ours[name], tensor) for name, tensor in meant.items())


@pytest.mark.parametrize("hook", ["on_start", "on_step", "on_round", "on_evaluate", "on_end"])
def test_an_error_in_a_callback_names_it_and_the_others_end(hook):
    def fails(*arguments):
        raise TypeError("mine")

    class Mine(Callback):
        pass

    setattr(Mine, hook, fails)
    before, after = Seen(), Seen()
    with pytest.raises(TypeError, match="mine") as caught:
        by_train([before, Mine(), after])
    assert f"(callback Mine, {hook})" in caught.value.__notes__
    ended = [("end", type(None) if hook == "on_end" else TypeError)]  # what ended the training
    assert [call for call in before.calls if call[0] == "end"] == ended
    assert [call for call in after.calls if call[0] == "end"] == ([] if hook == "on_start" else ended)


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_on_end_is_told_of_a_failure_once(error):
    def loss_fn(output, y):
        raise error

    seen = Seen()
    model, given = settings()
    with pytest.raises(error):
        train(model, loss_fn, blobs(WORKERS), **given, callbacks=[seen], verify=False)
    assert seen.calls == [("start", 0), ("end", error)]


def test_functions_are_callbacks_too():
    rounds = []
    by_train([Callback(on_round=lambda session, record: rounds.append((session.state.round, record.round)))])
    assert rounds == [(1, 0), (2, 1), (3, 2)]
    with pytest.raises(ValueError, match=r"on_rounds.*'on_round'"):
        Callback(on_rounds=print)


def test_a_loop_outside_of_with_is_refused():
    model, given = settings()
    session = Session(model, loss_fn=F.cross_entropy, **given, callbacks=[Seen()])
    with pytest.raises(ValueError, match="with session:"):
        next(session.rounds())


def test_stop_ends_after_the_round_with_a_checkpoint_and_a_score(tmp_path):
    def on_round(session, record):
        if record.round == 0:
            session.stop()

    kept = [Checkpoints(folder=tmp_path, every_s=1000, resume=resume) for resume in (False, True)]
    stopped = by_train([Callback(on_round=on_round)], checkpoints=kept[0])
    assert [record.round for record in stopped.history] == [0]
    assert stopped.score.count == 16
    seen = Seen()
    resumed = by_train([seen], checkpoints=kept[1])
    assert seen.calls[0] == ("start", 1)
    assert [record.round for record in resumed.history] == [1, 2]
    assert resumed.score == by_train([]).score


def test_every_process_calls_its_callbacks():
    seen = [Seen() for _ in range(WORKERS)]
    together(WORKERS, lambda member: by_train([seen[member.rank]], runtime=member))
    alone = Seen()
    by_train([alone])
    for rank in range(WORKERS):
        steps = [call for call in alone.calls if call[0] == "step" and call[2] == rank]
        assert [call for call in seen[rank].calls if call[0] == "step"] == steps
        assert [call[:2] for call in seen[rank].calls if call[0] == "round"] == [("round", t) for t in range(ROUNDS)]
    assert [call[0] for call in seen[0].calls if call[0] != "step"] == [c[0] for c in alone.calls if c[0] != "step"]


@pytest.mark.parametrize("hook", ["on_start", "on_step", "on_round"])
def test_a_stop_in_one_process_only_is_told_in_all(hook):
    class S(Callback):
        pass

    def stop(self, session, *more):
        if hook == "on_round":
            session.score(session.full(blobs(WORKERS).sample(0, 64)))  # which calls on_evaluate of the others
        if session.setup.runtime.rank == 0:
            session.stop()

    setattr(S, hook, stop)

    def work(member):
        with pytest.raises(ValueError, match=r"^callback S: session.stop\(\) on rank 0 only"):
            by_train([S(), Seen()], runtime=member)

    together(WORKERS, work)


def test_a_stop_iteration_is_an_error_and_ends_no_loop():
    def fails(session, *more):
        raise StopIteration("mine")

    for hook in ("on_start", "on_step", "on_round", "on_evaluate", "on_end"):
        with pytest.raises(RuntimeError, match="StopIteration: mine") as caught:
            by_train([Callback(**{hook: fails})])
        assert caught.value.__notes__[0] == f"(callback Callback, {hook})"


def test_the_first_error_is_raised_and_names_the_others():
    def fails(word):
        def fail(*arguments):
            raise TypeError(word)

        return fail

    with pytest.raises(TypeError, match="first") as caught:
        by_train([Callback(on_end=fails("third")), Callback(on_end=fails("second")), Callback(on_round=fails("first"))])
    assert caught.value.__notes__ == [
        "(callback Callback, on_round)",
        "then TypeError: second (callback Callback, on_end)",
        "then TypeError: third (callback Callback, on_end)",
    ]


def test_a_callback_that_acts_together_must_be_in_all_processes():
    def work(member):
        callbacks = [EarlyStopping(3)] if member.rank else []
        with pytest.raises(ValueError, match="callbacks"):
            by_train(callbacks, runtime=member)

    together(WORKERS, work)


def test_figures_of_a_round_are_numbers_or_none():
    first, second, last = (figures(record, ["top"] if k == 0 else []) for k, record in enumerate(by_train([]).history))
    assert first["loss/test"] is first["accuracy/test"] is first["top/test"] is None
    assert 0 < last["loss/test"] < 9 > second["loss/test"] > 0
    assert all(value is None or isinstance(value, int | float) for value in last.values())
