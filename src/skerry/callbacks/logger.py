"""A logger: a callback of the first process that writes the figures of each round somewhere."""

import math
from collections.abc import Iterable, Mapping

from skerry.training.callback import Callback
from skerry.training.diagnosis.measures import MEASURES
from skerry.training.record import Record
from skerry.training.session import Session

Figures = Mapping[str, float | None]


def figures(record: Record, metrics: Iterable[str] = ()) -> Figures:
    """Return the figures of a round by name; None for what was not measured or is not finite.

    Args:
        record: of the round.
        metrics: names of metrics beside loss and accuracy, so that they are there in rounds without a score, too.
    """
    score = record.score
    found = {
        "loss/train": record.train_loss,
        "loss/test": score and score.loss,
        "accuracy/test": score and score.accuracy,
        **{f"{name}/test": score and score.metrics[name] for name in metrics},
        "rate/factor": record.rate_factor,
        "units/covered": record.units_covered,
        "workers/refused": len(record.refused),
        "workers/lost": len(record.change.lost) if record.change else 0,
        **{f"cost/{name}": value for name, value in record.totals.items()},
        **{f"diagnosis/{name}": getattr(record.diagnosis, name) for name in MEASURES},
    }
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


class Logger(Callback):
    """Writes in the first process only: override ``open``, ``log`` and ``close``."""

    reports = True

    def open(self, session: Session) -> None:
        """Begin; ``session.state.round`` rounds are done already."""

    def log(self, round: int, figures: Figures) -> None:
        """Write the figures of a round."""

    def close(self, error: BaseException | None) -> None:
        """End, also after a failure."""

    def on_start(self, session: Session) -> None:
        """Call ``open``."""
        self._metrics = tuple((session.test and session.test.metrics) or ())
        self._writes = session.setup.runtime.rank == 0
        if self._writes:
            self.open(session)

    def on_round(self, session: Session, record: Record) -> None:
        """Call ``log``."""
        if self._writes:
            self.log(record.round, figures(record, self._metrics))

    def on_end(self, session: Session, error: BaseException | None) -> None:
        """Call ``close``."""
        if self._writes:
            self.close(error)
