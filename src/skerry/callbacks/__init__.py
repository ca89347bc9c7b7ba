"""Callbacks for ``train`` and ``Session``: progress, files, trackers, early stopping, and the best model."""

from skerry.callbacks.best import BestCheckpoint, EarlyStopping
from skerry.callbacks.log_file import LogFile
from skerry.callbacks.logger import Logger, figures
from skerry.callbacks.progress import Progress
from skerry.callbacks.trackers import MLflow, TensorBoard, WandB
from skerry.training.callback import Callback

__all__ = [
    "BestCheckpoint", "Callback", "EarlyStopping", "LogFile", "Logger", "MLflow", "Progress", "TensorBoard", "WandB",
    "figures",
]  # fmt: skip
