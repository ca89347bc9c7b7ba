"""Between rounds: the calibrated full model, and its score, to which every process adds its part."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from skerry.checkpoint.state import State
from skerry.merge.calibrate import estimate_batch_norm_
from skerry.model.inputs import Inputs, call, map_tensors, to
from skerry.runtimes.runtime import FullModel
from skerry.training.evaluation.evaluate import Score, evaluate
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
    setup: Setup, state: State, full: FullModel, loss_fn: LossFn, test: Test, probe: Tensor | None
) -> Score:
    """Score the full model; every process must call it.

    Args:
        setup: of the session.
        state: of the training; its ``evaluate_s`` goes on.
        full: the calibrated full model.
        loss_fn: the mean loss over a batch.
        test: the test set; process k scores samples k, k + num_processes, ..., or all of its own part.
        probe: (num_probe,) int64, the samples of which ``Score.probe_loss`` is the mean loss.
    """
    runtime = setup.runtime

    def move(value: Inputs, part: slice) -> Any:
        return to(map_tensors(lambda tensor: tensor[part], value), setup.device)

    with _evaluating(setup, state), named_as_test(test.inputs, test.labels):
        mine = slice(None) if test.in_parts else slice(runtime.rank, None, runtime.num_processes)
        own = torch.zeros(runtime.num_processes, dtype=torch.int64)
        own[runtime.rank] = len(test.labels[mine])
        in_probe = torch.zeros(len(test.labels), dtype=torch.bool)
        if probe is not None:
            in_probe[probe] = True
        return evaluate(
            full.module,
            loss_fn,
            (move(test.inputs, mine), move(test.labels, mine)),
            metrics=test.metrics,
            batch_size=test.batch_size,
            num_batches=math.ceil(int(runtime.total(own).max()) / test.batch_size),  # of the largest part
            example=move(test.inputs, slice(1)),
            probe=in_probe[mine],
            total=runtime.total,
        )


@contextmanager
def _evaluating(setup: Setup, state: State) -> Iterator[None]:
    """Tell the runtime of the stage, and add the time to the totals."""
    started = time.perf_counter()
    setup.runtime.at(max(0, state.round - 1), "evaluation")
    yield
    state.totals["evaluate_s"] += time.perf_counter() - started
