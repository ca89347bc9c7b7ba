"""The record of a round: its figures, for progress, files and reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry.runtimes.runtime import Change
from skerry.training.diagnosis.measures import Diagnosis
from skerry.training.evaluation.evaluate import Score


@dataclass(frozen=True)
class Record:
    """The figures of one round.

    Attributes:
        round: its number, from 0.
        train_loss: mean over the workers' steps.
        rate_factor: what learning rates were multiplied by in its first step.
        score: of the calibrated full model; None where it was not evaluated.
        refused: workers whose weights or losses were not finite.
        units_covered: fraction of units that some worker has trained so far.
        totals: sums since the start, in seconds, bytes and operations (``State.totals``). ``bytes_due`` is what a
            worker had to send by the assignments, ``bytes_sent`` what this runtime sent.
        diagnosis: what was measured in the round.
        exposure: the largest share of the units that any one participant has held so far, by the assignments
            (``skerry.exposure``); None where units are dealt by movement, and in elastic runs.
        clock: simulated time at which it was over (``skerry.clients``); None without clients.
        local_s: seconds that each worker spent in its local steps; empty if the members of an elastic run changed.
        local_steps: how many each of them took; empty likewise.
        epsilon: of each worker, or client, in private training so far: with ``Private.delta``, of what has left it.
        change: of the members of an elastic run in this round, or before it; None: they stayed.
        faults: why the updates of sites were refused, or did not come, by worker; what was only not finite has none.
    """

    round: int
    train_loss: float
    rate_factor: float
    score: Score | None
    refused: tuple[int, ...]
    units_covered: float
    totals: Mapping[str, float]
    diagnosis: Diagnosis
    exposure: float | None = None
    clock: float | None = None
    local_s: tuple[float, ...] = ()
    local_steps: tuple[int, ...] = ()
    epsilon: tuple[float, ...] = ()
    change: Change | None = None
    faults: Mapping[int, str] = field(default_factory=dict)

    @property
    def exchange_s(self) -> float:
        """Seconds of overhead so far: all but local steps, evaluation and checkpoints."""
        t = self.totals
        return max(0.0, t["time_s"] - t["local_s"] - t["evaluate_s"] - t["checkpoint_s"])
