"""Skerry trains one wide PyTorch model as many narrow independent subnets.

The names below are those that people type. All others live in the rooms they belong to: ``skerry.algorithms``,
``skerry.partitions``, ``skerry.weights``, ``skerry.training`` and so on. ``skerry.experiments`` (recipes, the command
line, reports) is an extra, and nothing here imports it.
"""

from skerry import (
    algorithms,
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
from skerry.runtimes import Processes, launch
from skerry.sklearn import Classifier, Regressor
from skerry.training import Session, cosine, train

__all__ = [
    "Blocks", "Checkpoints", "Classifier", "Plan", "Processes", "Regressor", "Session", "Shards", "algorithms",
    "checkpoint", "cosine", "data", "discover", "discovery", "ensemble", "exchange", "from_dataset", "from_loaders",
    "ist", "launch", "merge", "narrow", "partitions", "plan", "relay", "runtimes", "split", "subnet", "train",
    "training", "verify", "weights",
]  # fmt: skip
