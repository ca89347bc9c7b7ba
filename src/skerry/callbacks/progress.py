"""Progress of a training: a bar on a terminal (with the package rich), otherwise some lines."""

import math
import sys
from typing import Any

from skerry.training.callback import Callback
from skerry.training.record import Record
from skerry.training.session import Session


class Progress(Callback):
    """Shows rounds, losses, scores, bytes and, on a terminal, the time left; on stderr, in the first process.

    Without a terminal, or without the package rich, it prints a line for each evaluation, and about ten if there is no
    test set.

    Args:
        title: shown before each line.
    """

    reports = True

    def __init__(self, title: str = "training") -> None:
        self._title, self._score = title, ""

    def on_start(self, session: Session) -> None:
        """Show the bar."""
        self._shows, self._bar = session.setup.runtime.rank == 0, None
        if self._shows and sys.stderr.isatty():
            self._bar = _bar(self._title, session.setup.num_rounds, session.state.round)

    def on_round(self, session: Session, record: Record) -> None:
        """Show the round that has just ended."""
        if not self._shows:
            return
        if record.score is not None:
            shown = {"accuracy": record.score.accuracy} if math.isfinite(record.score.accuracy) else {}
            shown |= dict(record.score.metrics)
            self._score = "  ".join(f"test {n} {v:.4f}" for n, v in (shown or {"loss": record.score.loss}).items())
        sent = f"{record.totals['bytes_due'] / 1e6:.3g} MB due per worker"
        members = f"{session.setup.runtime.num_processes} process(es)" if session.setup.runtime.goes_on else ""
        loss = f"epsilon {max(record.epsilon):.3g}" if record.epsilon else f"training loss {record.train_loss:.3f}"
        figures = "  ".join(filter(None, (loss, self._score, sent, members)))
        if record.change is not None:
            self._say(str(record.change))
        if record.refused:
            workers = ", ".join(map(str, record.refused))
            self._say(f"round {record.round}: rejected the update of worker {workers} (loss or weights not finite)")
        done, num = record.round + 1, session.setup.num_rounds
        due = done % max(1, num // 10) == 0 or done == num
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, figures=figures)
        elif record.score is not None or (session.test is None and due):
            self._say(f"round {done}/{num}  {figures}  {record.totals['time_s']:.0f} s")

    def on_end(self, session: Session, error: BaseException | None) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def _say(self, text: str) -> None:
        if self._bar is None:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, highlight=False)


def _bar(title: str, num_rounds: int, num_done: int) -> Any:
    """Return a running bar of rich; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[figures]}"), TimeRemainingColumn()]
    bar = Bar(*columns, console=Console(stderr=True))
    bar.add_task(title, total=num_rounds, completed=num_done, figures="")
    bar.start()
    return bar
