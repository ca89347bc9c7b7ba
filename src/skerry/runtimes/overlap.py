"""Overlap: trained parameters that everybody holds whole may be averaged while workers train on.

Only these: a correction by a difference keeps no bounds, so second moments, running variances and counters, which must
stay in theirs, are averaged before the next round begins.
"""

import torch
from torch import Tensor, nn

from skerry.exchange.owners import held_by_all
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan

BEGAN = "began::"
"""Before worker and name of a tensor: what a worker begins a round with where the mean of all arrives late."""


def late_names(model: nn.Module, plan: Plan, now: Assignment, then: Assignment) -> list[str]:
    """Return the names of what may arrive late; none where there is one worker."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    return held_by_all(plan, trained, now, then) if now.num_workers > 1 else []


def correction(mean: Tensor, began: Tensor) -> Tensor:
    """Return what turns the one into the other by addition: ``mean - began``; 0 also where both are infinite."""
    return torch.where(mean == began, torch.zeros_like(mean), mean - began)
