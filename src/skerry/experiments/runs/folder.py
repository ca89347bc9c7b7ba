"""One run in one folder: settings, metrics, checkpoints and the trained model.

    config.json            settings, and versions of the packages that ran it last
    metrics.jsonl          one line per round
    checkpoint/            the last two complete sets of checkpoint files, one file per process
    units.json             how often each unit was trained
    model.json             what the model takes and returns: kind of inputs, their scaling, names of classes
    summary.json           written when the run is done
    model.safetensors      the calibrated full model, written when the run is done

Only rank 0 writes, except for checkpoints. Every file is replaced atomically, except ``metrics.jsonl``, to which whole
lines are added, and which is truncated to the checkpoint's round on resume.
"""

import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import torch

from skerry.checkpoint import layout
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.experiments.config import Config
from skerry.experiments.methods import why_same_workers
from skerry.files import atomic
from skerry.predictor import Signature
from skerry.runtimes.distributed.meeting import PeerLost, own_version
from skerry.runtimes.runtime import Change
from skerry.training.callback import Callback
from skerry.training.cost import rank_memory
from skerry.training.diagnosis.measures import MEASURES
from skerry.training.evaluation.evaluate import Score
from skerry.training.record import Record
from skerry.training.session import Session
from skerry.training.train import Result

# May change when a run is resumed: how it runs (the result changes by rounding at most), how long, and with how many.
_FREE_ON_RESUME = ("runtime", "threads", "timeout_s", "checkpoint_every_s", "rounds", "workers", "device")
SIGNATURE = "model.json"
_PER_WORKER = ("capacities", "fractions")  # settings of the partition that change with the number of workers


class FolderInUse(ValueError):
    """The output folder holds something else, or another process writes to it."""


def saved_config(folder: Path) -> Config:
    """Return the config of the run in ``folder``.

    Raises:
        ValueError: there is no run, or its config.json is broken.
    """
    path = folder / "config.json"
    try:
        return Config.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(no_run(folder)) from None
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a readable config ({error}); start anew in another folder") from error


def no_run(folder: Path) -> str:
    """Return, in words, that there is no run in ``folder``, and what to give instead."""
    runs = ", ".join(sorted(str(path.parent) for path in folder.glob("*/config.json"))[:4])
    remedy = f"give one of its runs: {runs}" if runs else "give the folder of a run"
    return f"{folder}: no run there (config.json is missing); {remedy}"


def check_holds_no_run(out: Path) -> None:
    """Raise FolderInUse if files that are written to ``out`` would take the place of those of a run."""
    if (out / "metrics.jsonl").exists():
        raise FolderInUse(f"{out}: holds a run, whose files would be overwritten; choose another --out")


def check_folder(folder: Path, config: Config, *, resume: bool, same_shares: bool = True) -> None:
    """Raise unless a new run may start in ``folder``, or the run in it may be resumed with ``config``.

    Args:
        folder: of the run.
        config: its settings.
        resume: whether a run is resumed.
        same_shares: whether as many workers must have the shares of the saved run; not if they follow speeds.

    Raises:
        FolderInUse: it holds something already.
        ValueError: a setting that stays the same differs from the saved ones.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder}: is a file, expected a folder; choose another --out")
    if not resume:
        held = sorted(p.name for p in folder.glob("*") if p.name != "lock" and not atomic.is_draft(p))
        metrics = folder / "metrics.jsonl"
        if set(held) <= {"config.json", SIGNATURE, metrics.name} and not (metrics.exists() and metrics.stat().st_size):
            return  # a run that never began, because another process failed
        if "config.json" in held:
            raise FolderInUse(f"{folder}: holds a run; continue it with --resume, or choose another --out")
        if held:
            raise FolderInUse(f"{folder}: is not empty ({held[0]}, ...) and holds no run; choose another --out")
        return
    saved = saved_config(folder)
    same_workers = config.workers == saved.workers
    if not same_workers and (why := why_same_workers(config)):
        raise ValueError(f"{folder}: workers is {saved.workers} in the saved run, got {config.workers}; {why}")
    new, old = (settings_of(each, per_worker=same_workers and same_shares) for each in (config, saved))
    for name, value in new.items():
        if value != old[name]:
            raise ValueError(
                f"{folder}: {name} is {old[name]!r} in the saved run, got {value!r}; resume with the same settings"
            )


def is_finished(folder: Path, config: Config) -> bool:
    """Return whether the run in ``folder`` is done, with as many rounds and workers as ``config`` has."""
    if not (folder / "summary.json").exists():
        return False
    saved = saved_config(folder)
    return (saved.rounds, saved.workers) == (config.rounds, config.workers)


def settings_of(config: Config, *, per_worker: bool = True) -> dict[str, Any]:
    """Return the settings that stay the same when a run is resumed, as JSON values."""
    settings = {name: value for name, value in config.to_json().items() if name not in _FREE_ON_RESUME}
    if not per_worker:
        settings["partition"] = {k: v for k, v in settings["partition"].items() if k not in _PER_WORKER}
    return settings


def run_id(config: Config) -> str:
    """Return the text that identifies a run in its checkpoints: all settings that may not change on resume."""
    settings = settings_of(config, per_worker=False)
    # older checkpoints do not have these settings
    for name in (
        "prior_adjusted", "clients", "slowest", "asynchronous", "nets", "deadline", "private", "proximal", "by_samples",
    ):  # fmt: skip
        if getattr(config, name) == getattr(Config(), name):
            del settings[name]
    if config.partition.max_exposure == 1.0:
        del settings["partition"]["max_exposure"]
    return json.dumps(settings, sort_keys=True)


def checkpoints_of(folder: Path, config: Config, *, resume: bool) -> Checkpoints:
    """Return the checkpoints of the run in ``folder``; without any, a resumed run starts from the beginning."""
    # What _checkpoint in load.py needs of a run that has just gone on with others.
    settings = {"workers": config.workers, **{f"partition.{k}": getattr(config.partition, k) for k in _PER_WORKER}}
    return Checkpoints(
        folder=folder, run=run_id(config), every_s=config.checkpoint_every_s, resume=resume, settings=settings
    )


def write_config(folder: Path, config: Config) -> None:
    """Write the settings of a run into its folder, so that it can be resumed."""
    content = {**config.to_json(), "versions": _versions()}
    atomic.write(folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())


def keep_config(folder: Path, config: Config) -> None:
    """Write the settings of a run, unless the folder has them: on a machine without the first process's folder.

    Raises:
        FolderInUse: it has those of another run.
    """
    if (folder / "config.json").exists():
        saved = saved_config(folder)
        if run_id(saved) != run_id(config):
            raise FolderInUse(f"{folder}: holds a run with other settings; choose another --out, or remove the folder")
        if (saved.rounds, saved.workers, saved.partition) == (config.rounds, config.workers, config.partition):
            return
    with atomic.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)


def how_to_go_on(folder: Path) -> str:
    """Return what there is of a run that has ended early, and how it goes on."""
    if not (folder / "config.json").exists():
        return f"nothing of {folder} is kept, start it again"
    if (folder / "summary.json").exists():
        return f"{folder} is finished"
    if saved := layout.complete_sets(folder):
        of = saved_config(folder).rounds
        return f"--resume continues {folder} after round {layout.round_of(saved[0].name)} of {of}"
    return f"{folder} has no checkpoint yet, so --resume starts from the beginning"


class RunFolder(Callback):
    """The writing side of a run folder; locked while open.

    Args:
        folder: created if it is missing.
        config: the settings of the run.
        resume: continue the run in ``folder``.
        heard: texts of warnings; those that are new are written with the next round.
        take_over: whether another process that still has the folder may lose it: it is stopped, and others go on.
        same_shares: see ``check_folder``.

    Raises:
        FolderInUse: the folder holds something else, or another process writes to it.
        ValueError: ``config`` differs from the saved settings.
    """

    reports = True

    def __init__(
        self,
        folder: Path,
        config: Config,
        signature: Signature,
        *,
        resume: bool,
        heard: list[str] | None = None,
        take_over: bool = False,
        same_shares: bool = True,
    ) -> None:
        check_folder(folder, config, resume=resume, same_shares=same_shares)
        self.folder, self.config, self._signature, self._new = folder, config, signature, not resume
        self._metrics, self._heard = folder / "metrics.jsonl", [] if heard is None else heard
        with atomic.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / "lock", take_over=take_over)
        self._new = not resume
        try:
            atomic.remove_drafts(folder)
            if self._new:
                write_config(folder, config)
        except OSError as error:
            self.__exit__(type(error), error, None)
            raise
        self._units_written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None and self._new and not (self._metrics.exists() and self._metrics.stat().st_size):
            for name in ("config.json", "metrics.jsonl", SIGNATURE, "lock"):  # it never started: leave it usable
                (self.folder / name).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._lock.close()

    def on_start(self, session: Session) -> None:
        """Write the settings; remove what a run that goes on will write again.

        Until here nothing of an earlier run has changed.
        """
        round = session.state.round
        if round < self.config.rounds:
            (self.folder / "summary.json").unlink(missing_ok=True)
        write_config(self.folder, self.config)
        self._write_json(SIGNATURE, self._signature.to_json())
        change = session.setup.runtime.change
        first = round - (change is not None and change.unrecorded)
        lines = self._metrics.read_bytes().splitlines(keepends=True) if self._metrics.exists() else []
        atomic.write(self._metrics, b"".join(line for line in lines if _round_of(line) < first))

    def on_round(self, session: Session, record: Record) -> None:
        """Write the line of the round, and from time to time the counts of the units."""
        self._check_lock()
        line = {"workers": self.config.workers} | metrics_line(record, self._new_warnings())
        atomic.append(self._metrics, (json.dumps(line) + "\n").encode())
        last = session.state.round == self.config.rounds
        if last or time.monotonic() - self._units_written >= self.config.checkpoint_every_s:
            self._write_units(session)
            self._units_written = time.monotonic()

    def finish(self, result: Result) -> None:
        """Write the summary."""
        self._check_lock()
        self._write_units(result.session)
        cost, now = result.step_cost, result.store.assignment
        unassigned = not bool(now.held.all())
        memory = {name: getattr(cost, name) for name in ("weights", "gradients", "optimizer", "activations")}
        memory["resting"] = rank_memory(result.plan, result.store.sizes, now, 0, cost).resting if unassigned else 0
        # From the file, so that rounds before a resume count, too.
        lines = [json.loads(line) for line in self._metrics.read_text().splitlines()]
        summary = {
            "finished": True,
            **_scores(result.score),
            "parameters": {"full": result.num_parameters, "subnet": cost.parameters},
            "memory_bytes": memory,
            "totals": result.state.totals,
            **_privacy(result),
            "warnings": {kind: text for line in reversed(lines) for kind, text in line.get("warnings", {}).items()}
            | self._new_warnings(),
            "changes": [line["change"] for line in lines if "change" in line],
        }
        self._write_json("summary.json", summary)

    def _check_lock(self) -> None:
        """Raise PeerLost if another process has taken the folder over."""
        path = self.folder / "lock"
        if path.exists() and path.stat().st_ino != os.fstat(self._lock.fileno()).st_ino:
            raise PeerLost(f"{self.folder}: another process has taken it over while this one was stopped")

    def _new_warnings(self) -> dict[str, str]:
        """Return the warnings since the last call by kind: the text before the first colon."""
        texts = list(self._heard)
        self._heard.clear()
        return {text.partition(":")[0]: text for text in texts}

    def _write_units(self, session: Session) -> None:
        trained = session.state.trained
        counts = [
            {"name": a.name, "kind": a.kind, "counts": trained[a.start : a.start + a.num_units].tolist()}
            for a in session.plan.axes
        ]
        self._write_json("units.json", {"rounds": session.state.round, "axes": counts})

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        atomic.write(self.folder / name, (json.dumps(content, indent=1) + "\n").encode())


def is_written(folder: Path) -> bool:
    """Return whether a process on this machine writes to ``folder`` now."""
    if not (folder / "lock").exists():
        return False
    with (folder / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _locked(path: Path, *, take_over: bool) -> IO[str]:
    while True:
        with atomic.writing(path):
            lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            lock.close()
        if not take_over:
            raise FolderInUse(f"{path.parent}: another process is writing to it; wait for it or choose another --out")
        path.unlink()  # whoever has it finds out (_check_lock)
        take_over = False


def _round_of(line: bytes) -> float:
    """Return the round of a line of metrics; infinity for one that is not whole."""
    try:
        return float(json.loads(line)["round"])
    except (ValueError, LookupError, TypeError):
        return math.inf


def metrics_line(record: Record, heard: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object of a round, with the warnings ``heard``; values that are not finite become null."""
    totals = record.totals
    return {
        "round": record.round,
        **{name: totals[name] for name in ("time_s", "local_s")},
        "exchange_s": record.exchange_s,
        **{name: totals[name] for name in ("evaluate_s", "checkpoint_s")},
        "rate_factor": record.rate_factor,
        "train_loss": _finite(record.train_loss),
        **_scores(record.score),
        **{name: totals[name] for name in ("bytes_due", "bytes_sent", "flop")},
        "units_covered": record.units_covered,
        "refused": list(record.refused),
        **({"faults": {str(worker): told for worker, told in record.faults.items()}} if record.faults else {}),
        "exposure": record.exposure,
        **({"epsilon": [_finite(each) for each in record.epsilon]} if record.epsilon else {}),
        "clock": record.clock,
        "local_s_of": list(record.local_s),
        "local_steps_of": list(record.local_steps),
        **({"change": changed(record.change)} if record.change else {}),
        "diagnosis": {name: _finite(getattr(record.diagnosis, name)) for name in MEASURES},
        "checked": list(record.diagnosis.checked),
        "warnings": {**heard, **record.diagnosis.warnings},
    }


def _privacy(result: Result) -> dict[str, Any]:
    """Return what each worker's, or client's, samples cost, and the noise that its last steps had."""
    private = result.session.setup.private
    if private is None:
        return {}
    epsilon = [_finite(each) for each in private.epsilon(result.state.observed)]
    return {"privacy": {"epsilon": epsilon, "delta": private.given.delta, "noise_multiplier": list(private.noise)}}


def changed(change: Change) -> dict[str, Any]:
    """Return what of a change of members is written."""
    return {name: getattr(change, name) for name in ("round", "members", "joined", "lost", "units_lost")}


def _scores(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"loss": None, "accuracy": None, "metrics": {}}
    metrics = {name: _finite(value) for name, value in score.metrics.items()}
    return {"loss": _finite(score.loss), "accuracy": _finite(score.accuracy), "metrics": metrics}


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _versions() -> dict[str, str]:
    return {
        "skerry": own_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
