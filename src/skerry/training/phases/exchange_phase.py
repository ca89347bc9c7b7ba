"""The end of a round: workers' tensors are exchanged and averaged, and the counts of the state go on."""

import math
from dataclasses import dataclass

from torch import nn

from skerry.checkpoint.state import State
from skerry.runtimes.runtime import Handover, Report
from skerry.training.check import check_units_stay
from skerry.training.setup import Setup


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class Exchanged:
    """What the processes learn of each other at the end of a round.

    Attributes:
        train_loss: mean over the workers that count.
        refused: workers whose tensors were refused.
        local_s: seconds that each worker spent in local steps.
        faults: of the refused ones, where more is known than that something is not finite (``Report.fault``).
        fault: the first of those that tell against the training.
    """

    train_loss: float
    refused: tuple[int, ...]
    local_s: tuple[float, ...]
    faults: dict[int, str]
    fault: str


def exchange(setup: Setup, state: State, handed: list[Handover]) -> Exchanged:
    """End the round; every process must call it.

    Args:
        setup: of the session.
        state: of the training; it goes on to the next round.
        handed: what the workers of this process hand over.

    Returns:
        What is known of the round then.
    """
    algorithm, store = setup.algorithm, setup.store
    now, then, sent = store.assignment, setup.assignment(state.round + 1), store.bytes_sent
    check_units_stay(algorithm, now, then)
    setup.runtime.at(state.round, "exchange")
    reports = store.exchange(handed, then, overlap=algorithm.overlap > 0)
    good, bad = ([report for report in reports if report.good == which] for which in (True, False))
    state.trained += now.held[[report.worker for report in good]].sum(0)
    state.round += 1
    against = [report.fault for report in bad if report.counts]
    state.bad_rounds = state.bad_rounds + 1 if against else 0
    _add_to_totals(setup, state, reports, store.bytes_sent - sent)
    return Exchanged(
        train_loss=sum(report.loss for report in good) / len(good) if good else math.nan,
        refused=tuple(report.worker for report in bad),
        local_s=tuple(report.local_s for report in reports),
        faults={report.worker: report.fault for report in bad if report.fault},
        fault=next(iter(against), ""),
    )


def stop_if_failed(state: State, max_bad_rounds: int, refused: tuple[int, ...] = (), fault: str = "") -> None:
    """Raise TrainingFailed after ``max_bad_rounds`` rounds in a row with a refused worker.

    Args:
        state: of the training.
        max_bad_rounds: how many.
        refused: the last ones.
        fault: what was wrong with the last (``Report.fault``).
    """
    if state.bad_rounds >= max_bad_rounds:
        who = f" (last of worker {', '.join(map(str, refused))})" if refused else ""
        what, remedy = "weights or losses that are not finite were", "a lower learning rate, or check the data"
        if fault:
            what, remedy = f"what a site sent ({fault}) was", "the same code and settings at the server and all sites"
        raise TrainingFailed(
            f"round {state.round - 1}: {what} refused in {state.bad_rounds} rounds in a row{who}; start again with "
            f"{remedy}"
        )


def _add_to_totals(setup: Setup, state: State, reports: list[Report], sent: float) -> None:
    """Add a round's times (seconds), operations and bytes to the totals."""
    num, totals = len(reports), state.totals
    due = sum(report.bytes_due for report in reports) / num
    totals["local_s"] += sum(report.local_s for report in reports) / setup.runtime.num_processes
    totals["flop"] += sum(report.flop for report in reports) / num
    totals["bytes_sent"] += sent
    totals["bytes_due"] += due
    if setup.algorithm.synchronous:
        num_means = setup.algorithm.local_steps * setup.steps.accumulate
        of_gradients = num_means * gradient_bytes(setup.model, num)
        totals["bytes_sent"] += of_gradients
        totals["bytes_due"] += of_gradients


def gradient_bytes(model: nn.Module, num_workers: int) -> float:
    """Return what a worker sends to average gradients once: 2 (n - 1) / n of their size, as in a ring."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return 2 * (num_workers - 1) / num_workers * trained
