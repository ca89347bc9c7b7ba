"""Skerry trains one wide PyTorch model as many narrow independent subnets."""

from skerry.aggregate import aggregate_
from skerry.algorithm import Algorithm
from skerry.algorithms import (
    ddp,
    diloco,
    ensemble,
    federated_dropout,
    fedrolex,
    heterofl,
    ist,
    local_sgd,
    narrow,
    resist,
    single,
)
from skerry.calibrate import calibrate
from skerry.checkpoint import Checkpoints
from skerry.covering import Covering
from skerry.data import Shards, from_dataset, from_loaders, split
from skerry.diagnosis import Diagnosis, TheoryWarning
from skerry.discovery import Blocks, discover
from skerry.estimator import Classifier, Regressor
from skerry.evaluate import Score, evaluate, precision_at
from skerry.local import Data
from skerry.loop import TrainingFailed
from skerry.outer import Outer
from skerry.partition import Assignment, Disjoint, Everything, Overlapping, Partition
from skerry.parts import Nested, Rolling, Sampled
from skerry.plan import Axis, DealtDim, Plan
from skerry.plan_file import load_plan, save_plan
from skerry.priors import log_priors
from skerry.relay import Relay
from skerry.rules import Heads, In, Out
from skerry.runtimes import Processes, Serial, WireFormat, launch
from skerry.schedule import constant, cosine
from skerry.session import Session
from skerry.sources import FromFiles, FromInitializer, materialize, skeleton
from skerry.state import Record, State
from skerry.subnet import extract, masked, write_back
from skerry.train import Result, train
from skerry.verify import verify
from skerry.warmup import Warmup

__all__ = [
    "Algorithm", "Assignment", "Axis", "Blocks", "Checkpoints", "Classifier", "Covering", "Data", "DealtDim",
    "Diagnosis", "Disjoint", "Everything", "FromFiles", "FromInitializer", "Heads", "In", "Nested", "Out", "Outer",
    "Overlapping", "Partition", "Plan", "Processes", "Record", "Regressor", "Relay", "Result", "Rolling", "Sampled",
    "Score", "Serial", "Session", "Shards", "State", "TheoryWarning", "TrainingFailed", "Warmup", "WireFormat",
    "aggregate_", "calibrate", "constant", "cosine", "ddp", "diloco", "discover", "ensemble", "evaluate", "extract",
    "federated_dropout", "fedrolex", "from_dataset", "from_loaders", "heterofl", "ist", "launch", "load_plan",
    "local_sgd", "log_priors", "masked", "materialize", "narrow", "precision_at", "resist", "save_plan", "single",
    "skeleton", "split", "train", "verify", "write_back",
]  # fmt: skip
