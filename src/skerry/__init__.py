"""Skerry trains one wide PyTorch model as many narrow independent subnets.

The names below are those that people type. All others live in the rooms they belong to: ``skerry.algorithms``,
``skerry.partitions``, ``skerry.weights``, ``skerry.training`` and so on. ``skerry.experiments`` (recipes, the command
line, reports) is an extra. Nothing here imports it but ``skerry.load``, when it is used.
"""

from typing import TYPE_CHECKING, Any

from skerry import (
    algorithms,
    callbacks,
    checkpoint,
    data,
    discovery,
    exchange,
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
from skerry.data import Shards, from_dataset, from_loaders, split
from skerry.discovery import Blocks, discover, verify
from skerry.plan import Plan
from skerry.predictor import Predictor
from skerry.runtimes import Processes, launch
from skerry.sklearn import Classifier, Regressor
from skerry.training import Session, cosine, train

if TYPE_CHECKING:
    from skerry.experiments.runs.load import load
else:

    def __getattr__(name: str) -> Any:
        """Import ``load`` when it is asked for."""
        if name == "load":
            from skerry.experiments.runs.load import load

            return load
        raise AttributeError(f"module 'skerry' has no attribute '{name}'")


__all__ = [
    "Blocks", "Checkpoints", "Classifier", "Plan", "Predictor", "Processes", "Regressor", "Session", "Shards",
    "algorithms", "callbacks", "checkpoint", "cosine", "data", "discover", "discovery", "ensemble", "exchange",
    "from_dataset", "from_loaders", "ist", "launch", "load", "merge", "narrow", "partitions", "plan", "relay",
    "runtimes", "split", "subnet", "train", "training", "verify", "weights",
]  # fmt: skip
