"""Moves: which elements change holders between two rounds.

Elements of a tensor with the same holders now, the same holders in the next round and the same owner rank are a product
of indices, one set per dim. So they are read and written as blocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from skerry.exchange.owners import owner_dim, whole_owner
from skerry.partitions.assignment import Assignment
from skerry.plan.dims import DealtDim, row_key
from skerry.plan.table import Plan
from skerry.subnet.index import Cut, Index


@dataclass(frozen=True, eq=False, slots=True)
class Move:
    """Elements of one tensor with the same holders now, the same holders in the next round, and the same owner.

    Attributes:
        name: the tensor.
        cut: which elements.
        holders: the workers whose subnets have them now. Empty: only their owner stores them.
        next_holders: the workers whose subnets have them in the next round. Empty: only their owner stores them then.
        owner: the worker that stores them while no worker holds them; None for elements that always have a holder.
    """

    name: str
    cut: Cut
    holders: tuple[int, ...]
    next_holders: tuple[int, ...]
    owner: int | None


Known = dict[tuple[object, ...], list[Move]]
"""A cache of moves, by table row."""


def moves(
    plan: Plan,
    sizes: Mapping[str, Tensor],
    now: Assignment,
    then: Assignment,
    worker: int | None = None,
    known: Known | None = None,
) -> Iterator[Move]:
    """Yield the moves of all elements, in an order that is the same in all processes.

    Args:
        plan: what is dealt out.
        sizes: the full-size tensors by name (only shapes are used).
        now: who holds what in the round that ends.
        then: who holds what in the next one.
        worker: yield only the moves that concern this worker.
        known: a cache, for calls with the same assignments and worker.

    Raises:
        ValueError: elements have no holder and no owner: the partition leaves a unit unassigned.
    """
    known = {} if known is None else known  # tensors with the same table row have the same moves
    for name in sorted(sizes):
        shape = sizes[name].shape
        row, block, along = plan.row(name, shape), plan.block_of(name), owner_dim(plan, name, shape)
        key = (row_key(row), block, len(shape))
        if key not in known:
            whole = whole_owner(plan, name, shape, now.num_workers)
            known[key] = list(_moves(name, row, block, along, whole, len(shape), now, then, worker))
        for move in known[key]:
            yield Move(name, move.cut, move.holders, move.next_holders, move.owner)


def _moves(
    name: str,
    row: Sequence[DealtDim | None],
    block: int | None,
    along: int | None,
    whole: int | None,
    num_dims: int,
    now: Assignment,
    then: Assignment,
    worker: int | None,
) -> Iterator[Move]:
    everyone = np.ones(now.num_workers, dtype=bool)
    start_now = everyone if block is None else now.held[:, block].numpy()
    start_then = everyone if block is None else then.held[:, block].numpy()
    dims = [d for d, dim in enumerate(row) if dim is not None]
    kinds = [kinds_of(dim, now, then, owners=d == along) for d, dim in enumerate(row) if dim is not None]
    *before, last = kinds or [Kinds(everyone[None], everyone[None], np.array([-1 if whole is None else whole]), [])]
    joined: dict[tuple[int, ...], Index] = {}  # the same few sets of kinds recur
    for chosen in product(*(range(len(k.now)) for k in before)):
        held, held_then, owner = start_now, start_then, last.owner
        for kind, c in zip(before, chosen, strict=True):
            held, held_then = held & kind.now[c], held_then & kind.then[c]
        if before:  # owners go by the first dealt dim
            where = before[0].owner[chosen[0]]
            if worker is not None and not (held[worker] or held_then[worker] or where == worker):
                continue
            owner = np.broadcast_to(where, len(last.now))
        a, b = last.now & held, last.then & held_then
        some_a, some_b = a.any(1), b.any(1)
        if bool((owner < 0).any()) and not (some_a.all() and some_b.all()):
            raise ValueError(f"{name}: units without a holder; the partition must assign every unit to a worker")
        wanted = some_a | some_b  # else its owner stores it before and after
        if worker is not None:
            wanted &= a[:, worker] | b[:, worker] | ((owner == worker) & ~(some_a & some_b))
        # Along the last dim, kinds with the same holders and owner are joined.
        groups: dict[tuple[bytes, bytes, int], list[int]] = {}
        for k in wanted.nonzero()[0].tolist():
            groups.setdefault((a[k].tobytes(), b[k].tobytes(), int(owner[k])), []).append(k)
        for (_, _, own), members in groups.items():
            indices: list[Index | None] = [None] * num_dims
            for d, kind, c in zip(dims, before, chosen, strict=False):
                indices[d] = kind.indices[c]
            if dims:
                same = tuple(members)
                if same not in joined:
                    joined[same] = Index(torch.cat([last.indices[k].ids for k in members]).sort().values)
                indices[dims[-1]] = joined[same]
            holders, next_holders = (tuple(x[members[0]].nonzero()[0].tolist()) for x in (a, b))
            yield Move("", tuple(indices), holders, next_holders, own if own >= 0 else None)


@dataclass(frozen=True, eq=False)
class Kinds:
    """The kinds of indices of a dim. Those of one kind have the same holders now and then, and the same owner.

    Attributes:
        now: bool, (kinds, workers): the holders of each kind.
        then: bool, (kinds, workers): its holders in the next round.
        owner: (kinds,): its owner, -1 for none.
        indices: its sorted indices.
    """

    now: np.ndarray
    then: np.ndarray
    owner: np.ndarray
    indices: list[Index]


def kinds_of(dim: DealtDim, now: Assignment, then: Assignment, *, owners: bool) -> Kinds:
    """Return the kinds of indices of ``dim``; with ``owners``, owners are assigned along it."""
    n, size = now.num_workers, len(dim.units)
    held = torch.cat([dim.look_up(a.held, True) for a in (now, then)]).numpy()
    owner = np.arange(size) * n // max(1, size) if owners else np.full(size, -1)
    codes = np.concatenate([np.packbits(held, axis=0).T, owner[:, None].astype(np.int32).view(np.uint8)], axis=1)
    codes = np.ascontiguousarray(codes).view(f"V{codes.shape[1]}").ravel()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(first)))[:-1])
    return Kinds(held[:n, first].T, held[n:, first].T, owner[first], [Index(torch.from_numpy(part)) for part in parts])
