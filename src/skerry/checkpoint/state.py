"""The state of a training beside its tensors: counts and sums, small enough for every process to have all of it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

TOTALS = ("time_s", "local_s", "evaluate_s", "checkpoint_s", "bytes_due", "bytes_sent", "flop")


@dataclass(repr=False)
class State:
    """What changes from round to round beside the tensors, which a ``Store`` keeps.

    Attributes:
        round: number of the next round, so the number of rounds that are done.
        trained: for each unit the number of workers' rounds in which it was trained, (num_units,) int64.
        bad_rounds: rounds in a row, up to now, in which a worker was refused.
        totals: sums over all rounds: seconds of rounds and checkpoints (``time_s``), of local steps per process
            (``local_s``), of evaluation (``evaluate_s``) and of checkpoints (``checkpoint_s``); bytes per worker by the
            assignments (``bytes_due``) and bytes sent (``bytes_sent``); operations per worker (``flop``).
        num_rounds, num_workers: of the training that writes it; 0 in older checkpoints.
        settings: what ``Checkpoints.settings`` was when it was saved; empty in older checkpoints.
        observed: figures of earlier rounds by which later ones are judged (``training/diagnosis/judge.py``).
    """

    round: int
    trained: Tensor
    bad_rounds: int = 0
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0.0))
    num_rounds: int = 0
    num_workers: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, list[float]] = field(default_factory=dict)
