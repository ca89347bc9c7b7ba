"""Gathering: how a whole tensor is put together from what all workers store."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.exchange.moves import Move
from skerry.exchange.owners import owned_range, owner_dim
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut, Index, whole


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A part of a full tensor as one worker stores it.

    Attributes:
        worker: which.
        cut: which elements.
        owned: whether it stores them as their owner (else they are in its subnet).
    """

    worker: int
    cut: Cut
    owned: bool


def stored_parts(plan: Plan, name: str, shape: torch.Size, now: Assignment) -> list[StoredPart]:
    """Return parts that make up a tensor, in the order in which they must be written.

    First what each owner stores, in which the places of elements that are in subnets have old values; then what is in
    each subnet (several holders have the same values). A tensor that somebody holds whole comes from there.
    """
    found = []
    for worker in range(now.num_workers):
        cut = Cuts(plan, now.units(worker)).of(name, shape)
        if cut is not None:
            found.append(StoredPart(worker, cut, owned=False))
    for part in found:
        if whole(part.cut):
            return [part]
    dim, owned = owner_dim(plan, name, shape), []
    if dim is not None:
        for worker in range(now.num_workers):
            run = Index.run(*owned_range(shape[dim], worker, now.num_workers))
            cut = tuple(run if d == dim else None for d in range(len(shape)))
            owned.append(StoredPart(worker, cut, owned=True))
    return owned + found


def gathering(
    plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, targets: tuple[int, ...]
) -> tuple[list[Move], list[Move]]:
    """Return the moves that bring tensors whole to ``targets``: of owned parts, and then of those in subnets.

    They are at most 2 n per tensor, and send up to 1/n more than the minimum.
    """
    first: list[Move] = []
    second: list[Move] = []
    for name, size in sizes.items():
        for part in stored_parts(plan, name, size.shape, now):
            cut = part.cut or (None,) * size.dim()
            if part.owned:
                first.append(Move(name, cut, (), targets, part.worker))
            else:
                second.append(Move(name, cut, (part.worker,), targets, None))
    return first, second
