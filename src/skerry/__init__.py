"""Skerry trains one wide PyTorch model as many narrow independent subnets.

The names below are those that people type. All others live in the rooms they belong to: ``skerry.algorithms``,
``skerry.partitions``, ``skerry.weights``, ``skerry.training`` and so on. ``skerry.experiments`` (recipes, the command
line, reports) is an extra, and so is scikit-learn. Nothing here imports them but ``skerry.load``, ``Classifier`` and
``Regressor``, when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skerry import (
    algorithms,
    callbacks,
    checkpoint,
    data,
    discovery,
    exchange,
    graphs,
    merge,
    partitions,
    plan,
    runtimes,
    subnet,
    training,
    weights,
)
from skerry.algorithms import ensemble, ist, narrow, relay
from skerry.checkpoint import Checkpoints
from skerry.clients import Clients
from skerry.data import Shards, from_dataset, from_loaders, split
from skerry.discovery import Blocks, discover, verify
from skerry.partitions import exposure
from skerry.plan import Plan
from skerry.predictor import Predictor
from skerry.privacy import Private
from skerry.runtimes import Elastic, Processes, launch
from skerry.subnet import prune
from skerry.training import Session, cosine, train

if TYPE_CHECKING:
    from skerry.experiments.runs.load import load
    from skerry.sklearn import Classifier, Regressor
else:
    _OF_EXTRAS = {
        "load": "skerry.experiments.runs.load",
        "Classifier": "skerry.sklearn",
        "Regressor": "skerry.sklearn",
    }

    def __getattr__(name: str) -> Any:
        """Import what needs an extra when it is asked for."""
        if name not in _OF_EXTRAS:
            raise AttributeError(f"module 'skerry' has no attribute '{name}'")
        try:
            return getattr(import_module(_OF_EXTRAS[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "sklearn":
                raise
            raise ImportError(f"skerry.{name} needs scikit-learn; run: pip install 'skerry[sklearn]'") from error


__all__ = [
    "Blocks", "Checkpoints", "Classifier", "Clients", "Elastic", "Plan", "Predictor", "Private", "Processes",
    "Regressor", "Session", "Shards", "algorithms", "callbacks", "checkpoint", "cosine", "data", "discover",
    "discovery", "ensemble", "exchange", "exposure", "from_dataset", "from_loaders", "graphs", "ist", "launch",
    "load", "merge", "narrow", "partitions", "plan", "prune", "relay", "runtimes", "split", "subnet", "train",
    "training", "verify", "weights",
]  # fmt: skip
