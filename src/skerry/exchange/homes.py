"""TODO."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan


def home_range(size: int, worker: int, num_workers: int) -> tuple[int, int]:
    """Return the indices ``begin .. end - 1`` along a dim of ``size`` that ``worker`` is home to."""
    return -(-worker * size // num_workers), -(-(worker + 1) * size // num_workers)


def home_dim(plan: Plan, name: str, shape: torch.Size) -> int | None:
    """Return the dim along which homes of a tensor are assigned; None for one whose elements always have a holder."""
    dealt = [d for d, dim in enumerate(plan.row(name, shape)) if dim is not None]
    between = len(dealt) + (plan.block_of(name) is not None) > 1
    return dealt[0] if dealt and (between or plan.rests) else None


def held_by_all(plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, then: Assignment) -> list[str]:
    """Return the names of those tensors that every worker holds whole in both rounds."""
    always = torch.cat([(now.held & then.held).all(0), torch.ones(1, dtype=torch.bool)])  # id -1 looks at the last
    return [
        name
        for name, size in sizes.items()
        if (plan.block_of(name) is None or always[plan.block_of(name)])
        and all(dim is None or bool(always[dim.units].all()) for dim in plan.row(name, size.shape))
    ]
