"""One round of a session: its workers one after the other, the exchange, and the round's figures."""

import math
import time
from collections.abc import Callable, Generator
from operator import add

from torch import Tensor

from skerry.checkpoint.state import State
from skerry.runtimes.runtime import Change, Handover
from skerry.training.diagnosis.measures import Diagnosis
from skerry.training.diagnosis.observer import Observer
from skerry.training.evaluation.evaluate import Score
from skerry.training.phases.exchange_phase import exchange
from skerry.training.phases.local_phase import lend_worker
from skerry.training.record import Record
from skerry.training.setup import Setup, note_exposure
from skerry.training.steps.pace import note_speeds, note_steps
from skerry.training.worker import Worker


class Round:
    """One round of a session; ``Session.rounds`` makes it.

    Attributes:
        number: from 0.
        workers: the workers that run in this process, one after the other; iterate exactly once, to exhaustion. Each
            is ready for its ``num_steps`` local steps, with a state of torch's random generator of its own; its subnet
            and optimizer are gone when the next one comes. After the last one the exchange takes place.
        train_loss: mean over the workers' steps; NaN before the exchange.
        refused: numbers of the workers whose weights or losses were not finite; empty before the exchange.
        faults: what was wrong with what sites sent, where it was refused for more than that.
        fault: the first of those that tell against the training.
        diagnosis: what was measured in the round (docs/your-run.md); blank before the exchange. ``Session.score`` adds
            the full model's loss.
        score: of the full model, if ``Session.score`` was called in the round.
    """

    def __init__(
        self,
        setup: Setup,
        state: State,
        observer: Observer,
        after_step: Callable[[Worker, Tensor], None] | None,
        change: Change | None,
    ) -> None:
        over = change is not None and change.unrecorded  # other processes have trained it
        self.number = state.round - over
        self.workers = self._workers()
        self.train_loss, self.refused = (change.train_loss, change.refused) if change and over else (math.nan, ())
        self._local_s, self._local_steps, self._change = tuple[float, ...](), tuple[int, ...](), change
        self.fault, self.faults, self.diagnosis = "", dict[int, str](), Diagnosis()
        self.score: Score | None = None
        self._setup, self._state, self._observer, self._after_step = setup, state, observer, after_step
        self._began = time.perf_counter()

    def _workers(self) -> Generator[Worker, None, None]:
        handed: list[Handover] = []
        num_steps = self._setup.steps_of_workers(self._state)
        taken = list(map(add, self._setup.steps_before(self._state), num_steps))
        for number in self._setup.runtime.mine(self._setup.algorithm.partition.num_workers):
            with lend_worker(self._setup, self._state, number, num_steps[number], handed) as worker:
                self._observer.begin_worker(worker)
                worker.after_step = self._after_step
                yield worker
                self._observer.end_worker(worker)
        found = exchange(self._setup, self._state, handed)
        self.refused, self.train_loss, self._local_s = found.refused, found.train_loss, found.local_s
        self.fault, self.faults = found.fault, found.faults
        self._local_steps = tuple(num_steps)
        note_steps(self._state, taken, self._setup.algorithm.local_steps)
        if self._setup.steps.deadline == "adaptive":
            note_speeds(self._state, num_steps, self._local_s, self.refused)
        self.diagnosis = self._observer.end_round(self._state, self.train_loss, self.refused)

    def end(self) -> Record:
        """Return the figures of the round up to now, whose time ends here. The session does it.

        Raises:
            ValueError: the workers were not iterated to exhaustion.
        """
        if self._state.round == self.number:
            raise ValueError(
                f"round {self.number}: ended before all workers were trained; iterate round.workers to exhaustion"
            )
        now = time.perf_counter()
        self._state.totals["time_s"] += now - self._began
        self._began = now
        trained, log = self._state.trained, self._setup.log
        exposure = note_exposure(self._state, None if log is None else log.units(self.number + 1))
        return Record(
            round=self.number,
            train_loss=self.train_loss,
            rate_factor=self._setup.rate_factor(self.number),
            score=self.score,
            refused=self.refused,
            units_covered=float((trained > 0).double().mean()) if len(trained) else 1.0,
            totals=dict(self._state.totals),
            diagnosis=self.diagnosis,
            exposure=exposure,
            clock=timeline.ends(self.number) if (timeline := self._setup.timeline) is not None else None,
            local_s=self._local_s,
            local_steps=self._local_steps,
            epsilon=() if (private := self._setup.private) is None else private.epsilon(self._state.observed),
            change=self._change,
            faults=self.faults,
        )
