"""Gathering: how a whole tensor is put together from what all workers store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.exchange.moves import Move
from skerry.exchange.owners import owned_cut
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut, whole


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A part of a full tensor as one worker stores it.

    Attributes:
        worker: the worker.
        cut: which elements.
        owned: whether the worker stores them as their owner; otherwise they are in its subnet.
    """

    worker: int
    cut: Cut
    owned: bool


def cuts_of_all(plan: Plan, assignment: Assignment) -> list[Cuts]:
    """Return what each worker has."""
    return [Cuts(plan, assignment.units(worker)) for worker in range(assignment.num_workers)]


def stored_parts(plan: Plan, name: str, shape: torch.Size, cuts: Sequence[Cuts]) -> list[StoredPart]:
    """Return parts that make up a tensor, in the order in which they must be written.

    Owned parts come first: in them, elements that are in a subnet now have old values. Then come the parts in subnets;
    holders of the same element have the same value. If some worker holds the whole tensor, that is the only part.
    """
    in_subnets = [(w, own.of(name, shape)) for w, own in enumerate(cuts)]
    owned = [(w, owned_cut(plan, name, shape, w, len(cuts))) for w in range(len(cuts))]
    found = [StoredPart(w, cut, owned=False) for w, cut in in_subnets if cut is not None]
    for part in found:
        if whole(part.cut):
            return [part]
    return [StoredPart(w, cut, owned=True) for w, cut in owned if cut is not None] + found


def gathering(
    plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, targets: tuple[int, ...]
) -> tuple[list[Move], list[Move]]:
    """Return the moves that bring whole tensors to ``targets``: first of owned parts, then of those in subnets.

    There are at most 2 n moves per tensor. They send up to 1/n more than the minimum.
    """
    cuts = cuts_of_all(plan, now)
    first: list[Move] = []
    second: list[Move] = []
    for name, size in sizes.items():
        for part in stored_parts(plan, name, size.shape, cuts):
            cut = part.cut or (None,) * size.dim()
            if part.owned:
                first.append(Move(name, cut, (), targets, part.worker))
            else:
                second.append(Move(name, cut, (part.worker,), targets, None))
    return first, second
