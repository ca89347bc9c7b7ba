"""Overlap: trained parameters that every worker holds whole may be averaged while workers train on.

Each worker adds the difference between the mean and its own value when the mean arrives. Second moments, running
variances and counters must stay within bounds, which adding a difference does not ensure: they are averaged first.
"""

import torch
from torch import Tensor, nn

from skerry.exchange.owners import held_by_all
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan

BEGAN = "began::"
"""Prefix of worker and name of a tensor: what a worker begins a round with where the mean arrives late."""


def late_names(model: nn.Module, plan: Plan, now: Assignment, then: Assignment) -> list[str]:
    """Return the names of the parameters whose mean may arrive late; empty with one worker."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    return held_by_all(plan, trained, now, then) if now.num_workers > 1 else []


def correction(mean: Tensor, began: Tensor) -> Tensor:
    """Return ``mean - began``; 0 also where both are the same infinity."""
    return torch.where(mean == began, torch.zeros_like(mean), mean - began)
