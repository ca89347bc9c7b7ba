"""What changes from round to round, and what is told of each round."""

from collections.abc import Mapping
from dataclasses import dataclass

from skerry.training.diagnosis import Diagnosis
from skerry.training.evaluate import Score


@dataclass(frozen=True)
class Record:
    """One round in figures. Times, bytes and operations are sums since the start; ``score`` where it was evaluated.

    ``exchange_s`` is all that is not local steps, evaluation or checkpoint: cutting, packing, waiting, traffic,
    aggregation. ``bytes_due`` is what a worker had to send by the assignments, ``bytes_sent`` what this runtime sent.
    """

    round: int
    train_loss: float
    rate_factor: float
    score: Score | None
    refused: tuple[int, ...]
    units_covered: float
    totals: Mapping[str, float]
    diagnosis: Diagnosis

    @property
    def exchange_s(self) -> float:
        """Seconds of overhead so far."""
        t = self.totals
        return max(0.0, t["time_s"] - t["local_s"] - t["evaluate_s"] - t["checkpoint_s"])
