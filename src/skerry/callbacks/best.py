"""The best score so far: stop when none is better any more, and keep the model that has it.

Values of the first process decide, so all processes do the same. What was best is kept in checkpoints, so a resumed
training decides as the undisturbed one would have done.
"""

import math
import warnings
from pathlib import Path

import torch

from skerry.choose import choose
from skerry.runtimes.runtime import FullModel
from skerry.training.callback import Callback
from skerry.training.evaluation.evaluate import Score
from skerry.training.record import Record
from skerry.training.session import Session
from skerry.whole_number import check_whole_number

TRAIN_LOSS = "train_loss"


class _Best(Callback):
    """Remembers the best value of ``of``."""

    together = True

    def __init__(self, of: str, lower_is_better: bool | None) -> None:
        self.of, self.lower_is_better = of, of in ("loss", TRAIN_LOSS) if lower_is_better is None else lower_is_better

    def _check(self, session: Session, *more: str) -> None:
        """Find the memory; raise ValueError unless there will be values."""
        name = type(self).__name__
        alike = [c for c in session.callbacks if type(c) is type(self) and isinstance(c, _Best) and c.of == self.of]
        self._key = f"{name} {self.of} {alike.index(self)}"
        if session.test is None and self.of not in more:
            also = "".join(f", or of='{other}'" for other in more)
            raise ValueError(f"{name}(of='{self.of}'): there is no test set; give test=skerry.training.Test(...){also}")
        metrics = (session.test and session.test.metrics) or ()
        choose(self.of, ["loss", "accuracy", *metrics, *more], f"value of {name}(of=...):")

    def _is_better(self, session: Session, value: float, best: float, by: float = 0.0) -> bool:
        gain = best - value if self.lower_is_better else value - best
        runtime = session.setup.runtime
        return bool(runtime.total(torch.tensor(int(gain > by and runtime.rank == 0))))

    @property
    def _worst(self) -> float:
        return math.inf if self.lower_is_better else -math.inf

    def _value(self, score: Score) -> float:
        return {"loss": score.loss, "accuracy": score.accuracy, **score.metrics}[self.of]


class EarlyStopping(_Best):
    """Ends the training when ``patience`` values in a row were not better than the best before them.

    The rounds that are left are not trained; the result is that of the last round (the best: ``BestCheckpoint``).

    Args:
        patience: number of values: of evaluations (``Test.every``), or of rounds for ``"train_loss"``.
        of: ``"loss"`` or ``"accuracy"`` on the test set, the name of one of its metrics, or ``"train_loss"``.
        lower_is_better: by default for losses.
        min_delta: a value must be better by more than this.

    Raises:
        ValueError: at the start: there is no such value.
    """

    def __init__(
        self, patience: int, *, of: str = "loss", lower_is_better: bool | None = None, min_delta: float = 0.0
    ) -> None:
        check_whole_number("patience", patience, 1)
        super().__init__(of, lower_is_better)
        self.patience, self.min_delta = patience, min_delta

    def on_start(self, session: Session) -> None:
        """Stop at once if the training that is resumed had stopped."""
        self._check(session, TRAIN_LOSS)
        self._seen = 0
        if session.state.observed.get(self._key, [0, 0])[1] >= self.patience:
            session.stop()

    def on_round(self, session: Session, record: Record) -> None:
        """Stop if there was nothing better for long enough."""
        if self.of != TRAIN_LOSS and record.score is None:
            return
        value = record.train_loss if record.score is None or self.of == TRAIN_LOSS else self._value(record.score)
        best, since = session.state.observed.get(self._key, [self._worst, 0])
        better = self._is_better(session, value, best, self.min_delta)
        best, since = (value, 0) if better else (best, since + 1)
        session.state.observed[self._key], self._seen = [best, since], self._seen + 1
        if since >= self.patience:
            session.stop()

    def on_end(self, session: Session, error: BaseException | None) -> None:
        """Warn if there was nothing to compare."""
        if error is None and len(session.history) > 1 >= self._seen and session.setup.runtime.rank == 0:
            warnings.warn(
                f"EarlyStopping: {self._seen} evaluations in {len(session.history)} rounds, so nothing could be "
                "compared; give test=skerry.training.Test(..., every=...)",
                stacklevel=2,
            )


class BestCheckpoint(_Best):
    """Exports the calibrated full model to ``folder`` whenever its score is the best so far, in every runtime.

    Args:
        folder: gets ``model.safetensors`` (``Session.export``).
        of: ``"loss"`` or ``"accuracy"`` on the test set, or the name of one of its metrics.
        lower_is_better: by default for the loss.

    Raises:
        ValueError: at the start: there is no such value.
    """

    def __init__(self, folder: Path | str, *, of: str = "loss", lower_is_better: bool | None = None) -> None:
        super().__init__(of, lower_is_better)
        self._folder = Path(folder)

    def on_start(self, session: Session) -> None:
        """Check that there is such a value."""
        self._check(session)

    def on_evaluate(self, session: Session, score: Score, full: FullModel) -> None:
        """Export the model if it is the best."""
        value = self._value(score)
        if self._is_better(session, value, session.state.observed.get(self._key, [self._worst])[0]):
            session.state.observed[self._key] = [value, session.state.round]
            session.export(full, self._folder, shard_bytes=None)
