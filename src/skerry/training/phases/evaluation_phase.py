"""Between rounds: the calibrated full model, and its score, to which every process adds its part."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from skerry.checkpoint.state import State
from skerry.merge.calibrate import estimate_batch_norm_
from skerry.model.inputs import Inputs, call, take, to
from skerry.runtimes.runtime import FullModel, Runtime
from skerry.training.evaluation.evaluate import Score, evaluate
from skerry.training.evaluation.held_by import Elsewhere
from skerry.training.evaluation.test_set import Test, named_as_test
from skerry.training.setup import Setup
from skerry.training.worker import LossFn


def calibrated_full_model(setup: Setup, state: State, inputs: Sequence[Inputs]) -> FullModel:
    """Return the full model, scaled, and with batch-norm statistics measured on batches of this process's workers."""
    with _evaluating(setup, state):
        share = setup.share(state.round)
        full = setup.store.full(share)
        if bool((share.alone < 1).any()):
            found = [to(x, setup.device) for x in inputs]
            estimate_batch_norm_(full.module, lambda m: [call(m, x) for x in found], setup.runtime.total)
    return full


def score_full_model(
    setup: Setup, state: State, full: FullModel, loss_fn: LossFn, test: Test | Elsewhere, probe: Tensor | None
) -> Score:
    """Score the full model; every process must call it.

    Args:
        setup: of the session.
        state: of the training; its ``evaluate_s`` goes on.
        full: the calibrated full model.
        loss_fn: the mean loss over a batch.
        test: the test set; of that of all, process k scores samples k, k + num_processes, ...
        probe: (num_probe,) int64, the samples of which ``Score.probe_loss`` is the mean loss.
    """
    with _evaluating(setup, state):
        if isinstance(test, Elsewhere):
            for _ in range(test.num_batches):
                call(full.module, to(test.example, setup.device))
            return _shared(None, test.metrics, setup.runtime)
        with named_as_test(test.inputs, test.labels):
            if test.held_by == "one":
                return _shared(_own_score(setup, full, loss_fn, test), tuple(test.metrics or ()), setup.runtime)
            return _score_together(setup, full, loss_fn, test, probe)


def _own_score(setup: Setup, full: FullModel, loss_fn: LossFn, test: Test) -> Score:
    """Score the full model on a test set that only this process has."""
    data = test.inputs, test.labels
    return evaluate(full.module, loss_fn, data, metrics=test.metrics, batch_size=test.batch_size, device=setup.device)


def _shared(score: Score | None, names: tuple[str, ...], runtime: Runtime) -> Score:
    """Return the score of the one process that has it, in all processes."""
    own = (
        [0.0] * (3 + len(names))
        if score is None
        else [score.loss, score.accuracy, score.count, *score.metrics.values()]
    )
    loss, accuracy, count, *metrics = runtime.total(torch.tensor(own, dtype=torch.float64)).tolist()
    return Score(loss, accuracy, int(count), dict(zip(names, metrics, strict=True)))


def _score_together(setup: Setup, full: FullModel, loss_fn: LossFn, test: Test, probe: Tensor | None) -> Score:
    """Score the full model with all processes, each of which has the test set or a part of it."""
    runtime = setup.runtime

    mine = slice(None) if test.held_by == "parts" else slice(runtime.rank, None, runtime.num_processes)
    own = torch.zeros(runtime.num_processes, dtype=torch.int64)
    own[runtime.rank] = len(test.labels[mine])
    in_probe = torch.zeros(len(test.labels), dtype=torch.bool)
    if probe is not None:
        in_probe[probe] = True
    return evaluate(
        full.module,
        loss_fn,
        (take(test.inputs, mine), test.labels[mine]),
        metrics=test.metrics,
        batch_size=test.batch_size,
        num_batches=math.ceil(int(runtime.total(own).max()) / test.batch_size),  # of the largest part
        example=take(test.inputs, slice(1)),
        probe=in_probe[mine],
        device=setup.device,
        total=runtime.total,
    )


@contextmanager
def _evaluating(setup: Setup, state: State) -> Iterator[None]:
    """Tell the runtime of the stage, and add the time to the totals."""
    started = time.perf_counter()
    setup.runtime.at(max(0, state.round - 1), "evaluation")
    yield
    state.totals["evaluate_s"] += time.perf_counter() - started
