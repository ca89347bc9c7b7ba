"""One run in one folder: settings, metrics, checkpoints and the trained model, so that nothing is ever lost.

    config.json            settings and versions (of each part, where it was resumed)
    metrics.jsonl          one line a round
    checkpoint.json        the last complete set of checkpoint files (``checkpoint.py``)
    checkpoint/            that set: a file a process
    units.json             how often each unit was trained
    summary.json           written when the run is done
    model.safetensors      the calibrated full model, written when the run is done (``export.py``)

But for checkpoints only the first process writes. Every file but ``metrics.jsonl`` is replaced in one step; that one is
cut back to the checkpoint's round on resume.
"""

import fcntl
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from skerry.files import atomic
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.experiments.config import Config
from skerry.training.cost import rank_memory
from skerry.training.diagnosis.measures import Diagnosis, MEASURES
from skerry.plan.dims import Axis
from skerry.checkpoint.state import State
from skerry.training.record import Record
from skerry.training.train import Result

# May differ between the parts of a resumed run: they change how it runs, and what comes out at most by rounding.
_FREE_ON_RESUME = ("runtime", "threads", "timeout_s", "checkpoint_every_s")


class FolderInUse(ValueError):
    """The output folder holds another run, or another process writes to it."""


def saved_config(folder: Path) -> Config:
    """Return the config of the run in ``folder``.

    Raises:
        ValueError: there is no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        return Config.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: no run there (config.json is missing); name its folder, or start one without --resume"
        ) from None
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a readable config ({error}); start anew in another folder") from error


def check_folder(folder: Path, config: Config, *, resume: bool) -> None:
    """Raise unless a new run may start in ``folder``, or the run in it may be resumed with ``config``.

    Raises:
        FolderInUse: it holds something already.
        ValueError: a setting differs from the saved ones.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder}: is a file, expected a folder; choose another --out")
    if not resume:
        held = (
            [p.name for p in folder.glob("*") if p.name != "lock" and not atomic.is_draft(p)] if folder.is_dir() else []
        )
        if held:
            if "config.json" in held:
                raise FolderInUse(f"{folder}: holds a run; go on with --resume, or choose another --out")
            raise FolderInUse(f"{folder}: is not empty ({sorted(held)[0]}, ...) and no run; choose another --out")
        return
    new, old = config.to_json(), saved_config(folder).to_json()
    for name, value in new.items():
        if value != old[name] and name not in _FREE_ON_RESUME:
            raise ValueError(
                f"{folder}: {name} is {old[name]!r} in the saved run, got {value!r}; resume with the same settings"
            )


def run_id(config: Config) -> str:
    """Return what tells runs apart: all settings that may not differ between the parts of a resumed run."""
    told = {k: v for k, v in config.to_json().items() if k not in _FREE_ON_RESUME}
    if not config.prior_adjusted:  # checkpoints of before there was such a setting do not tell of it
        del told["prior_adjusted"]
    return json.dumps(told, sort_keys=True)


def checkpoints_of(folder: Path, config: Config, *, resume: bool) -> Checkpoints:
    """Return where the run in ``folder`` keeps its checkpoints; one killed before its first starts anew."""
    return Checkpoints(folder=folder, run=run_id(config), every_s=config.checkpoint_every_s, resume=resume)


class RunFolder:
    """The writing side of a run folder; locked while open.

    Args:
        folder: where; made if it is missing.
        config: the run's settings.
        resume: whether to keep what is there.
    """

    def __init__(self, folder: Path, config: Config, *, resume: bool) -> None:
        check_folder(folder, config, resume=resume)
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise FolderInUse(
                f"{folder}: another process is writing to it; wait for it or choose another --out"
            ) from None
        atomic.remove_drafts(folder)
        self._write_json("config.json", {**config.to_json(), "versions": _versions()})
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._new = not resume
        self._units_written = time.monotonic()
        self._axes: tuple[Axis, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        if error is not None and self._new and not (self.folder / "metrics.jsonl").stat().st_size:
            for name in ("config.json", "metrics.jsonl", "lock"):  # it never began: leave the way free
                (self.folder / name).unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._lock.close()

    def begin(self, axes: tuple[Axis, ...], round: int) -> None:
        """Note the axes of what is trained; forget the lines of ``round`` and later ones: they will be written again."""
        self._axes = axes
        path = self.folder / "metrics.jsonl"
        self._metrics.close()
        lines = path.read_bytes().splitlines(keepends=True)
        atomic.write(path, b"".join(lines[:round]))
        self._metrics = path.open("a")

    def on_round(self, record: Record, state: State) -> None:
        """Write the round's line and now and then the units' counts."""
        self._metrics.write(json.dumps(metrics_line(record)) + "\n")
        self._metrics.flush()
        last = state.round == self.config.rounds
        if last or time.monotonic() - self._units_written >= self.config.checkpoint_every_s:
            self._write_units(state)
            self._units_written = time.monotonic()

    def finish(self, result: Result) -> None:
        """Write the summary."""
        self._write_units(result.state)
        cost, now = result.step_cost, result.store.assignment
        at_rest = not bool(now.held.all())  # what everybody holds rests nowhere
        resting = rank_memory(result.plan, result.store.sizes, now, 0, cost).resting if at_rest else 0
        self._write_json(
            "summary.json",
            {
                "finished": True,
                "accuracy": _finite(result.score.accuracy) if result.score else None,
                "loss": _finite(result.score.loss) if result.score else None,
                "metrics": {n: _finite(v) for n, v in result.score.metrics.items()} if result.score else {},
                "parameters": {"full": result.num_parameters, "subnet": cost.parameters},
                "memory_bytes": {
                    "weights": cost.weights,
                    "gradients": cost.gradients,
                    "optimizer": cost.optimizer,
                    "activations": cost.activations,
                    "resting": resting,
                },
                "totals": result.state.totals,
                "warnings": self._warnings(),
            },
        )

    def _warnings(self) -> dict[str, str]:
        """What theory warned of in all rounds, those before a resume included."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {kind: text for line in reversed(lines) for kind, text in line.get("warnings", {}).items()}

    def _write_units(self, state: State) -> None:
        counts = [
            {"name": a.name, "kind": a.kind, "counts": state.trained[a.start : a.start + a.num_units].tolist()}
            for a in self._axes
        ]
        self._write_json("units.json", {"rounds": state.round, "axes": counts})

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        atomic.write(self.folder / name, (json.dumps(content, indent=1) + "\n").encode())


def metrics_line(record: Record) -> dict[str, Any]:
    """Return the JSON line of a round; figures that are not finite become null."""
    score, totals = record.score, record.totals
    return {
        "round": record.round,
        **{name: totals[name] for name in ("time_s", "local_s")},
        "exchange_s": record.exchange_s,
        **{name: totals[name] for name in ("evaluate_s", "checkpoint_s")},
        "rate_factor": record.rate_factor,
        "train_loss": _finite(record.train_loss),
        "loss": _finite(score.loss) if score else None,
        "accuracy": _finite(score.accuracy) if score else None,
        "metrics": {n: _finite(v) for n, v in score.metrics.items()} if score else {},
        **{name: totals[name] for name in ("bytes_due", "bytes_sent", "flop")},
        "units_covered": record.units_covered,
        "refused": list(record.refused),
        "diagnosis": _diagnosis(record.diagnosis),
        "warnings": dict(record.diagnosis.warnings),
    }


def _diagnosis(found: Diagnosis) -> dict[str, float | None]:
    figures = {name: getattr(found, name) for name in MEASURES}
    return {name: None if value is None else _finite(value) for name, value in figures.items()}


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _versions() -> dict[str, str]:
    return {
        "skerry": importlib.metadata.version("skerry"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
