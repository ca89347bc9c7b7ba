"""Training: rounds, sessions, evaluation, and what is watched meanwhile."""

from skerry.training.diagnosis import Diagnosis, TheoryWarning
from skerry.training.evaluate import Score, evaluate, precision_at
from skerry.training.loop import TrainingFailed
from skerry.training.priors import log_priors
from skerry.training.record import Record
from skerry.training.schedules import constant, cosine
from skerry.training.session import Round, Session
from skerry.training.train import Result, train
from skerry.training.worker import Data, Worker

__all__ = [
    "Data",
    "Diagnosis",
    "Record",
    "Result",
    "Round",
    "Score",
    "Session",
    "TheoryWarning",
    "TrainingFailed",
    "Worker",
    "constant",
    "cosine",
    "evaluate",
    "log_priors",
    "precision_at",
    "train",
]
