"""Checks of a training's arguments, made before it starts so that mistakes are named here and not deep inside."""

from typing import Any

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.discovery.verify import verify, verify_small
from skerry.merge.calibrate import check_batch_norm
from skerry.model.inputs import Inputs, to
from skerry.model.tensors import named_tensors
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.plan.table import Plan
from skerry.trained import Start


def check_model(model: nn.Module, plan: Plan, start: Start | None) -> None:
    """Raise ValueError unless ``model`` is that of ``plan``, has values or a start, and can be calibrated."""
    plan.check(model)
    check_batch_norm(model)
    if _is_on_meta(model) and start is None:
        raise ValueError(
            "the model is on meta and has no values; give start=lambda m: skerry.weights.FromInitializer(m, seed=0)"
        )


def check_algorithm(algorithm: Algorithm, plan: Plan, num_rounds: int) -> None:
    """Raise ValueError unless ``algorithm`` can train ``plan`` for ``num_rounds``."""
    partition, last = algorithm.partition, num_rounds - 1
    if not plan.axes and not isinstance(partition, Everything):
        raise ValueError(
            f"the plan deals nothing out, so '{algorithm.name}' has nothing to deal; print(plan) says why, and "
            "docs/plans.md how to change that"
        )
    if plan.blocks and not partition.covers:
        raise ValueError(
            f"'{algorithm.name}' leaves units unassigned for a round, but blocks have no owner rank that stores them; "
            "deal out units within blocks, or use ist"
        )
    if num_rounds < 1:
        raise ValueError(f"num_rounds={num_rounds}: expected at least 1")
    rounds = sorted({0, min(1, last), num_rounds // 2, last}) if algorithm.keeps else []
    check_units_stay(algorithm, *(partition.assign(plan.axes, round) for round in rounds))


def check_units_stay(algorithm: Algorithm, *assignments: Assignment) -> None:
    """Raise ValueError if workers of ``algorithm`` keep something of their units, but not the units."""
    if algorithm.keeps and not all(torch.equal(assignments[0].held, other.held) for other in assignments):
        raise ValueError(
            f"'{algorithm.name}': optimizer_state='stay' and an outer optimizer are for workers that keep their units; "
            "use 'reset' or 'travel', or a method that deals only once (ensemble, ist with reshuffle=0)"
        )


def check_functions(optimizer: object, schedule: object, loss_fn: object, test: object) -> None:
    """Raise ValueError for mistakes that are easily made with the functions of a training."""
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError("optimizer: expected a function of parameters, such as lambda p: torch.optim.SGD(p, lr=0.1)")
    if not callable(schedule):
        raise ValueError(f"schedule: got {schedule!r}, expected a function of progress, such as skerry.cosine")
    if test is not None and loss_fn is None:
        raise ValueError("test: a test set, but no loss_fn; give the function that returns the mean loss over a batch")


def check_data(data: Any, algorithm: Any) -> None:
    """Raise ValueError unless ``algorithm`` is one, and ``data`` has batches for its workers."""
    if not isinstance(algorithm, Algorithm):
        raise ValueError(
            f"algorithm: got {algorithm!r}, expected what a method returns, such as skerry.ist(workers=4, "
            "local_steps=20)"
        )
    num_workers = algorithm.partition.num_workers
    if not (hasattr(data, "batches") and hasattr(data, "sample")):
        raise ValueError(f"data: got {type(data).__name__}, expected skerry.Shards or another skerry.training.Data")
    if data.num_workers != num_workers:
        raise ValueError(
            f"the data is split for {data.num_workers} workers, but algorithm '{algorithm.name}' has {num_workers}; "
            "split it for that number"
        )


def check_logit_adjustment(rows: object, num_workers: int) -> None:
    """Raise ValueError unless ``rows`` is None or has a row per worker."""
    if rows is None:
        return
    if not isinstance(rows, Tensor):
        raise ValueError(
            f"logit_adjustment: got {type(rows).__name__}, expected a tensor, such as skerry.training.log_priors(...)"
        )
    if rows.dim() != 2 or len(rows) != num_workers:
        raise ValueError(
            f"logit_adjustment: shape {tuple(rows.shape)}, expected ({num_workers}, number of classes), one row per "
            "worker; compute it from that number of parts (skerry.training.log_priors)"
        )


def verify_plan(model: nn.Module, plan: Plan, inputs: Inputs) -> None:
    """Raise ValueError unless subnets compute what ``plan`` says; for a model on meta, a small net of its modules."""
    if _is_on_meta(model):
        verify_small(model, plan, inputs)
    else:
        verify(model, plan, to(inputs, next(model.parameters()).device))


def _is_on_meta(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in named_tensors(model).values())
