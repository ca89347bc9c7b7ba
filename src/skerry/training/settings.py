"""What a session is told, once: its checks, its agreement with other processes, and its setup read it."""

from dataclasses import dataclass

import torch
from torch import nn

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.plan.table import Plan
from skerry.privacy.private_run import PrivateRun
from skerry.runtimes.runtime import Runtime
from skerry.training.steps.schedules import Schedule
from skerry.training.steps.settings import StepSettings
from skerry.training.worker import LossFn, OptimizerFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of ``Session``, which says what they are, with what they stand for where they may be None."""

    model: nn.Module
    plan: Plan
    algorithm: Algorithm
    optimizer: OptimizerFn
    num_rounds: int
    schedule: Schedule
    steps: StepSettings
    seed: int
    runtime: Runtime
    device: torch.device
    checkpoints: Checkpoints | None
    max_bad_rounds: int
    loss_fn: LossFn | None
    private: PrivateRun | None

    @property
    def num_steps(self) -> int:
        """Local steps of a worker in all rounds."""
        return self.num_rounds * self.algorithm.local_steps
