"""Where and how often a training saves checkpoints, and whether it resumes from the latest. Two are kept."""

import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skerry.checkpoint.load import SavedTensors, load_latest
from skerry.checkpoint.save import save_checkpoint
from skerry.checkpoint.state import State
from skerry.plan.table import Plan
from skerry.runtimes.runtime import Runtime, Store


@dataclass
class Checkpoints:
    """Checkpoints of a run, for ``train`` and ``Session``.

    Args:
        folder: of the run.
        run: identifies the run (its settings); a checkpoint of another run is refused, as is one of another method.
        every_s: seconds between two checkpoints; 0: after every round. The last round always has one.
        resume: whether to resume from the latest checkpoint in ``folder``, if there is one; if it is damaged, from
            the one before, with a warning.
        settings: JSON values kept in each checkpoint: what of the run's settings may change when it goes on.

    Example:
        >>> Checkpoints("runs/digits", every_s=60, resume=True).folder.name
        'digits'
    """

    folder: Path
    _: KW_ONLY
    run: str = ""
    every_s: float = 10.0
    resume: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic, init=False)
    _last: str | None = field(default=None, init=False)  # the set saved last, or resumed from

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)

    def latest(self, method: str, plan: Plan, sizes: Mapping[str, Tensor], runtime: Runtime) -> SavedTensors | None:
        """Return the checkpoint to resume from; None for a start from the beginning. See ``load_latest``."""
        found = None
        if self.resume:
            found = load_latest(self.folder, plan, sizes, runtime, run=self.run, method=method)
        self._last = found.set_name if found else None
        return found

    def save_if_due(self, method: str, state: State, store: Store, runtime: Runtime, *, done: bool) -> None:
        """Save a checkpoint if it is time by the first process's clock or ``done``; every process must call it."""
        due = runtime.rank == 0 and (done or time.monotonic() - self._saved >= self.every_s)
        runtime.at(state.round - 1, "checkpoint")
        if not runtime.total(torch.tensor(int(due))):
            return
        started = time.perf_counter()
        state.settings = dict(self.settings)
        self._last = save_checkpoint(self.folder, state, store, runtime, run=self.run, method=method, before=self._last)
        self._saved = time.monotonic()
        took = time.perf_counter() - started
        state.totals["checkpoint_s"] += took
        state.totals["time_s"] += took
