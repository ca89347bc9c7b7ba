"""Trackers of experiments: TensorBoard, Weights & Biases and MLflow. Each needs its extra."""

import importlib
import re
from pathlib import Path
from typing import Any

from skerry.callbacks.logger import Figures, Logger
from skerry.files import atomic
from skerry.training.session import Session


class TensorBoard(Logger):
    """Writes the figures of each round as TensorBoard events to ``folder``; a resumed training replaces later ones.

    Raises:
        ValueError: the extra ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        self._make = _extra("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder = Path(folder)
        self._writer: Any = None  # opened in the first round, when the run owns the folder

    def log(self, round: int, figures: Figures) -> None:
        """Write the figures."""
        with atomic.writing(self._folder / "events"):
            self._writer = self._writer or self._make(str(self._folder), purge_step=round)
            for name, value in _known(figures).items():
                self._writer.add_scalar(name, value, round)
            self._writer.flush()

    def close(self, error: BaseException | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB(Logger):
    """Logs the figures of each round to Weights & Biases: to the active run, or to a new one.

    Args:
        settings: of ``wandb.init``, for a new run: ``project="digits", mode="offline"``. To go on after a resume give
            the ``id`` of the run and ``resume="allow"``.

    Raises:
        ValueError: the extra ``wandb`` is not installed.
    """

    def __init__(self, **settings: Any) -> None:
        self._wandb, self._settings = _extra("wandb", "wandb"), settings

    def open(self, session: Session) -> None:
        """Begin a run, unless one is active."""
        self._own = self._wandb.run is None
        self._run = self._wandb.init(**self._settings) if self._own else self._wandb.run

    def log(self, round: int, figures: Figures) -> None:
        """Log the figures at step ``round``."""
        self._run.log(_known(figures), step=round)

    def close(self, error: BaseException | None) -> None:
        """Finish the run that was begun here."""
        if self._own:
            self._run.finish(exit_code=int(error is not None))


class MLflow(Logger):
    """Logs the figures of each round to MLflow: to the active run, or to a new one, at the current tracking URI.

    Args:
        settings: of ``mlflow.start_run``, for a new run: ``run_name="digits"``; to go on after a resume, ``run_id``.

    Raises:
        ValueError: the extra ``mlflow`` is not installed.
    """

    def __init__(self, **settings: Any) -> None:
        self._mlflow, self._settings = _extra("mlflow", "mlflow"), settings

    def open(self, session: Session) -> None:
        """Begin a run, unless one is active."""
        self._own = self._mlflow.active_run() is None
        if self._own:
            self._mlflow.start_run(**self._settings)

    def log(self, round: int, figures: Figures) -> None:
        """Log the figures at step ``round``; characters that MLflow does not allow in names become "_"."""
        known = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in _known(figures).items()}
        self._mlflow.log_metrics(known, step=round)

    def close(self, error: BaseException | None) -> None:
        """End the run that was begun here."""
        if self._own:
            self._mlflow.end_run("FINISHED" if error is None else "FAILED")


def _known(figures: Figures) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{extra} is not installed; run: pip install 'skerry[{extra}]'") from error
