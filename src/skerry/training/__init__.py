"""Training: sessions and rounds, evaluation, and the diagnosis of a run."""

from skerry.training.callback import Callback
from skerry.training.diagnosis.measures import Diagnosis
from skerry.training.diagnosis.theory_warnings import TheoryWarning
from skerry.training.evaluation.causal import causal_lm_loss
from skerry.training.evaluation.evaluate import Score, evaluate
from skerry.training.evaluation.metrics import Perplexity, precision_at
from skerry.training.evaluation.test_set import Test
from skerry.training.phases.exchange_phase import TrainingFailed
from skerry.training.priors import log_priors
from skerry.training.record import Record
from skerry.training.round import Round
from skerry.training.session import Session
from skerry.training.setup import net_to_train
from skerry.training.steps.schedules import constant, cosine
from skerry.training.train import Result, train
from skerry.training.worker import Data, Worker

__all__ = [
    "Callback", "Data", "Diagnosis", "Perplexity", "Record", "Result", "Round", "Score", "Session", "Test",
    "TheoryWarning", "TrainingFailed", "Worker", "causal_lm_loss", "constant", "cosine", "evaluate", "log_priors",
    "net_to_train", "precision_at", "train",
]  # fmt: skip
