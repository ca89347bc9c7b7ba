"""TODO."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skerry.exchange.homes import home_dim, home_range
from skerry.exchange.moves import Move, num_elements
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan


def gathering(
    plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, targets: tuple[int, ...]
) -> tuple[list[Move], list[Move]]:
    """Return the moves that bring tensors whole to ``targets``: at most 2 n a tensor, the second after the first.

    First each home sends its run, in which the places of what is in subnets have old values; then each worker what is
    in its subnet, which is written over that (several holders have the same values). It is up to 1/n more than need be
    sent. A tensor that somebody holds whole comes from there.
    """
    at_rest: list[Move] = []
    in_subnets: list[Move] = []
    for name, size in sizes.items():
        shape, block, home = size.shape, plan.block_of(name), home_dim(plan, name, size.shape)
        row = plan.row(name, shape) or (None,) * len(shape)
        found: list[Move] = []
        for worker in range(now.num_workers):
            held = torch.cat([now.held[worker], torch.ones(1, dtype=torch.bool)])  # id -1 looks at the last
            if block is None or held[block]:
                indices = tuple(None if dim is None else held[dim.units].nonzero().flatten() for dim in row)
                found.append(Move(name, indices, (worker,), targets, None))
        whole = [move for move in found if num_elements(move.indices, shape) == size.numel()]
        if not whole and home is not None:
            for worker in range(now.num_workers):
                run = torch.arange(*home_range(shape[home], worker, now.num_workers))
                indices = tuple(run if d == home else None for d in range(len(shape)))
                at_rest.append(Move(name, indices, (), targets, worker))
        in_subnets += whole[:1] or found
    return at_rest, in_subnets
