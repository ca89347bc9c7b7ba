"""Owner ranks: which worker stores the elements that are in no subnet."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut, Index


def owned_range(size: int, worker: int, num_workers: int) -> tuple[int, int]:
    """Return the indices ``begin .. end - 1`` along a dim of ``size`` that ``worker`` owns, the w-th of n runs."""
    return -(-worker * size // num_workers), -(-(worker + 1) * size // num_workers)


def owner_dim(plan: Plan, name: str, shape: torch.Size) -> int | None:
    """Return the dim along which owners of a tensor are assigned; None if it has none (see ``whole_owner``)."""
    dealt = [d for d, dim in enumerate(plan.row(name, shape)) if dim is not None]
    between = len(dealt) + (plan.block_of(name) is not None) > 1
    return dealt[0] if dealt and (between or plan.may_be_unassigned) else None


def whole_owner(plan: Plan, name: str, shape: torch.Size, num_workers: int) -> int | None:
    """Return the owner of a tensor that is in a subnet whole or not at all; None if it always is in some subnet."""
    block = plan.block_of(name)
    rests = block is not None and plan.may_be_unassigned and owner_dim(plan, name, shape) is None
    return block % num_workers if block is not None and rests else None


def owned_cut(plan: Plan, name: str, shape: torch.Size, worker: int, num_workers: int) -> Cut | None:
    """Return the part of a tensor that ``worker`` owns; None if every element is always in some subnet."""
    along = owner_dim(plan, name, shape)
    if along is None:
        return (None,) * len(shape) if whole_owner(plan, name, shape, num_workers) == worker else None
    run = Index.run(*owned_range(shape[along], worker, num_workers))
    return tuple(run if d == along else None for d in range(len(shape)))


def held_by_all(plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, then: Assignment) -> list[str]:
    """Return the names of the tensors that every worker holds whole in both rounds."""
    always = Cuts(plan, (now.held & then.held).all(0).nonzero().flatten())
    return [name for name, size in sizes.items() if always.has_whole(name, size.shape)]
