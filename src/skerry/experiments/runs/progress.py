"""Progress of a run: a bar on a terminal, otherwise one line per evaluation."""

import math
import sys
from typing import Self

from skerry.checkpoint.state import State
from skerry.training.record import Record


class RunProgress:
    """Shows rounds, loss, accuracy, bytes and time left; pass ``on_round`` to ``train``.

    Args:
        title: shown before each line.
        num_rounds: the length of the run.
    """

    def __init__(self, title: str, num_rounds: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._title, self._num_rounds = title, num_rounds
        self._score = "test accuracy   -  "
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=num_rounds, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._bar.stop()

    def on_round(self, record: Record, state: State) -> None:
        """Show the round that has just ended."""
        if record.score is not None:
            shown = {"accuracy": record.score.accuracy} if math.isfinite(record.score.accuracy) else {}
            shown |= dict(record.score.metrics)
            self._score = "  ".join(f"test {n} {v:.4f}" for n, v in (shown or {"loss": record.score.loss}).items())
        sent = f"{record.totals['bytes_due'] / 1e6:.3g} MB due per worker"
        figures = f"training loss {record.train_loss:.3f}  {self._score}  {sent}"
        if record.refused:
            workers = ", ".join(map(str, record.refused))
            self._say(f"round {record.round}: rejected the update of worker {workers} (loss or weights not finite)")
        self._bar.update(self._task, completed=record.round + 1, figures=figures)
        if self._bar.disable and record.score is not None:
            self._say(f"round {record.round + 1}/{self._num_rounds}  {figures}  {record.totals['time_s']:.0f} s")

    def _say(self, text: str) -> None:
        if self._bar.disable:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, highlight=False)
