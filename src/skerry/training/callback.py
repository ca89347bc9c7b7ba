"""What a training calls as it goes, in ``train`` and in a loop of one's own; ``skerry.callbacks`` has some."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from skerry.choose import choose
from skerry.randomness import own_random_state
from skerry.runtimes.runtime import FullModel
from skerry.training.evaluation.evaluate import Score
from skerry.training.record import Record
from skerry.training.worker import Worker

HOOKS = ("on_start", "on_step", "on_round", "on_evaluate", "on_end")


class Callback:
    """What a training calls: override the methods you need, or give functions by name.

    ``session`` is the ``skerry.Session``, with ``state`` (counts and sums), ``history`` (the records of the rounds) and
    ``stop()``. Every process calls its own callbacks, in the order of the list.

    Attributes:
        together: whether a method calls what every process must call (``Session.full``, ``score``, ``export``,
            ``stop``). Then all processes must have this callback, which is checked before they train.
        reports: whether ``on_round`` comes after that of the others. Then its record has the score also where one of
            them has stopped the training.

    Example:
        >>> class Losses(Callback):
        ...     def on_round(self, session, record):
        ...         print(f"{record.round}: {record.train_loss:.3f}")
        >>> losses = Callback(on_round=lambda session, record: print(f"{record.round}: {record.train_loss:.3f}"))
    """

    together: bool = False
    reports: bool = False

    def __init__(self, **hooks: Callable[..., object]) -> None:
        for name, function in hooks.items():
            setattr(self, choose(name, HOOKS, "hook"), function)

    def on_start(self, session: Any) -> None:
        """Begin: before the first round, or the first one after a resume."""

    def on_step(self, session: Any, worker: Worker, loss: Tensor) -> None:
        """See a local step of a worker of this process, with its loss, detached and still on its device."""

    def on_round(self, session: Any, record: Record) -> None:
        """See the record of a round, after its exchange and evaluation and before its checkpoint."""

    def on_evaluate(self, session: Any, score: Score, full: FullModel) -> None:
        """See the score of the full model on the session's test set; ``full`` is the calibrated full model."""

    def on_end(self, session: Any, error: BaseException | None) -> None:
        """End what ``on_start`` began, also after a failure, of which ``error`` is the exception."""


class Callbacks:
    """Calls the callbacks of a session; an error gets a note that names the callback.

    Raises:
        ValueError: one is not a ``Callback``, or has a method that no training calls.
    """

    def __init__(self, callbacks: Sequence[Callback], session: Any) -> None:
        for k, callback in enumerate(_listed(callbacks)):
            if not isinstance(callback, Callback):
                raise ValueError(
                    f"callbacks[{k}]: got {callback if isinstance(callback, type) else type(callback)}, expected a "
                    "skerry.callbacks.Callback, such as skerry.callbacks.Progress()"
                )
            for name in dir(callback):
                if name.startswith("on_"):
                    choose(name, HOOKS, f"method of callbacks[{k}], {type(callback).__name__}:")
        self._all, self._session, self._started = list(callbacks), session, list[Callback]()
        self.running = ""  # the callback that is being called

    @property
    def together(self) -> list[Callback]:
        """Those that every process must have."""
        return [callback for callback in self._all if callback.together]

    def start(self) -> None:
        """Call ``on_start``; where one fails, end those that have started."""
        for callback in self._all:
            try:
                self._call([callback], "on_start")
            except BaseException as error:
                self.end(error)
                raise
            self._started.append(callback)

    def on_step(self) -> Callable[[Worker, Tensor], None] | None:
        """Return what calls the ``on_step`` of those that have one of their own; None if there is none."""
        own = [c for c in self._started if getattr(c.on_step, "__func__", None) is not Callback.on_step]

        def call(worker: Worker, loss: Tensor) -> None:
            # Else what a callback draws would change the training.
            with own_random_state(device=self._session.setup.device):
                self._call(own, "on_step", worker, loss)

        return call if own else None

    def round(self, record: Record) -> None:
        """Call ``on_round`` of those that may stop the training."""
        self._call([callback for callback in self._started if not callback.reports], "on_round", record)

    def report(self, record: Record) -> None:
        """Call ``on_round`` of those that report."""
        self._call([callback for callback in self._started if callback.reports], "on_round", record)

    def evaluate(self, score: Score, full: FullModel) -> None:
        """Call ``on_evaluate``; nothing before the start and after the end."""
        self._call(self._started, "on_evaluate", score, full)

    def end(self, error: BaseException | None) -> None:
        """Call ``on_end`` of all that have started, the last one first; the first error gets the others as notes."""
        first: BaseException | None = error
        while self._started:
            try:
                self._call([self._started.pop()], "on_end", error)
            except BaseException as another:
                if first is None:
                    first = another
                else:
                    told = [f"then {type(another).__name__}: {another}", *getattr(another, "__notes__", [])]
                    first.add_note(" ".join(told))
        if first is not None and first is not error:
            raise first

    def _call(self, callbacks: Sequence[Callback], hook: str, *arguments: object) -> None:
        for callback in callbacks:
            name = type(callback).__name__
            before, self.running = self.running, f"callback {name}"
            try:
                getattr(callback, hook)(self._session, *arguments)
            except StopIteration as error:  # it would end the loop over rounds
                told = RuntimeError(f"StopIteration: {error}")
                told.add_note(f"(callback {name}, {hook})")
                raise told from error
            except Exception as error:
                error.add_note(f"(callback {name}, {hook})")
                raise
            finally:
                self.running = before


def _listed(callbacks: object) -> Sequence[object]:
    if not isinstance(callbacks, list | tuple):
        raise ValueError(f"callbacks: got {type(callbacks).__name__}, expected a list of skerry.callbacks.Callback")
    return callbacks
