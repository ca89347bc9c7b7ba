"""TensorBoard events of a run; needs the extra ``tensorboard``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.checkpoint.state import State
from skerry.files import atomic
from skerry.training.record import Record


class Events:
    """Writes the values of each round to ``folder``; pass ``on_round`` to ``train``.

    Raises:
        ValueError: the extra is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("--tensorboard: not installed; run: pip install 'skerry[tensorboard]'") from error
        self._open: Callable[[int], Any] = lambda round: SummaryWriter(str(folder), purge_step=round)
        self._folder = folder
        self._writer: Any = None  # opened in the first round, when the run owns the folder

    def on_round(self, record: Record, state: State) -> None:
        """Write the values of one round."""
        scalars = {"loss/train": record.train_loss, "units/covered": record.units_covered}
        scalars |= {f"cost/{name}": record.totals[name] for name in ("bytes_due", "bytes_sent", "flop", "time_s")}
        if record.score is not None:
            scalars |= {"loss/test": record.score.loss, "accuracy/test": record.score.accuracy}
            scalars |= {f"{name}/test": value for name, value in record.score.metrics.items()}
        with atomic.writing(self._folder / "events"):
            self._writer = self._writer or self._open(record.round)
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, record.round)
            self._writer.flush()
