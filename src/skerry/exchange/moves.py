"""Exchange: what moves where between two rounds, known to everybody before a byte is sent.

Between rounds every element of the full model is in one of two places: in the subnets of the workers that hold all its
units, or, where nobody does, with its *home*, a fixed worker. Only an element of two dealt dims (or of a block and a
dealt dim) can be without a holder, unless the partition leaves units to nobody (``plan.rests``). Its home follows from
its index along the tensor's first dealt dim: worker w is home to the w-th of n equal runs of it. With H the holders of
an element now and H' those in the next round:

    one holder          it moves straight to each new holder, H' - H; to its home, if H' is empty
    no holder           its home sends it to each new holder
    several holders     one of them, the collector, gets it from the others and passes the mean on to H'

What stays where it is does not move. The collectors of a set of elements are all its holders, each for an equal part,
so a tensor that everybody shares costs what a ring all-reduce does: 2 (n - 1) / n of its size for each worker.

Elements that share all this are a product of indices, one set for each dim, and so are cut out and written as blocks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from skerry.exchange.homes import home_dim
from skerry.partitions.assignment import Assignment
from skerry.plan.dims import DealtDim
from skerry.plan.table import Plan

Indices = tuple[Tensor | None, ...]
"""For each dim of a full-size tensor the sorted indices, int64, None for all; the set is their product."""


@dataclass(frozen=True, eq=False, slots=True)
class Move:
    """Elements of one tensor that have the same holders now and in the next round, and the same home.

    Attributes:
        name: the tensor.
        indices: which elements.
        holders: the workers whose subnets have them now; none: they rest at home.
        next_holders: the workers whose subnets have them in the next round; none: they will rest at home.
        home: the worker they rest with; None for elements that always have a holder.
    """

    name: str
    indices: Indices
    holders: tuple[int, ...]
    next_holders: tuple[int, ...]
    home: int | None


Known = dict[tuple[object, ...], list[Move]]
"""Moves that have been found, by table row."""


def moves(
    plan: Plan,
    sizes: Mapping[str, Tensor],
    now: Assignment,
    then: Assignment,
    worker: int | None = None,
    known: Known | None = None,
) -> Iterator[Move]:
    """Return what becomes of every element, in an order that is the same for everybody.

    Args:
        plan: what is dealt out.
        sizes: the full-size tensors by name (only shapes are looked at).
        now: who holds what in the round that ends.
        then: who holds what in the next one.
        worker: only moves that concern it.
        known: from calls with the same assignments and worker; what is found is added.

    Raises:
        ValueError: elements would rest, but the tensor has no homes: the partition leaves a unit to nobody.
    """
    known = {} if known is None else known  # tensors with the same table row move alike
    for name in sorted(sizes):
        shape = sizes[name].shape
        row, block, home = plan.row(name, shape), plan.block_of(name), home_dim(plan, name, shape)
        key = (tuple(id(dim and dim.units) for dim in row), block, len(shape))
        if key not in known:
            known[key] = list(_moves(name, row, block, home, len(shape), now, then, worker))
        for move in known[key]:
            yield Move(name, move.indices, move.holders, move.next_holders, move.home)


def _moves(
    name: str,
    row: Sequence[DealtDim | None],
    block: int | None,
    home: int | None,
    num_dims: int,
    now: Assignment,
    then: Assignment,
    worker: int | None,
) -> Iterator[Move]:
    everybody = np.ones(now.num_workers, dtype=bool)
    start_now = everybody if block is None else now.held[:, block].numpy()
    start_then = everybody if block is None else then.held[:, block].numpy()
    dims = [d for d, dim in enumerate(row) if dim is not None]
    kinds = [_kinds(dim, now, then, homes=d == home) for d, dim in enumerate(row) if dim is not None]
    *before, last = kinds or [_Kinds(everybody[None], everybody[None], np.array([-1]), [])]
    joined: dict[tuple[int, ...], Tensor] = {}  # the same few sets of kinds come again and again
    for chosen in product(*(range(len(k.now)) for k in before)):
        held, held_then, at_home = start_now, start_then, last.home
        for kind, c in zip(before, chosen, strict=True):
            held, held_then = held & kind.now[c], held_then & kind.then[c]
        if before:  # the home goes by the first dealt dim
            where = before[0].home[chosen[0]]
            if worker is not None and not (held[worker] or held_then[worker] or where == worker):
                continue
            at_home = np.broadcast_to(where, len(last.now))
        a, b = last.now & held, last.then & held_then
        some_a, some_b = a.any(1), b.any(1)
        if bool((at_home < 0).any()) and not (some_a.all() and some_b.all()):
            raise ValueError(f"{name}: units without a holder; the partition must give every unit to some worker")
        wanted = some_a | some_b  # else it rests and goes on resting
        if worker is not None:
            wanted &= a[:, worker] | b[:, worker] | ((at_home == worker) & ~(some_a & some_b))
        # Along the last dim, indices with the same holders join, whatever kinds they are of.
        groups: dict[tuple[bytes, bytes, int], list[int]] = {}
        for k in wanted.nonzero()[0].tolist():
            groups.setdefault((a[k].tobytes(), b[k].tobytes(), int(at_home[k])), []).append(k)
        for (_, _, rests), members in groups.items():
            indices: list[Tensor | None] = [None] * num_dims
            for d, kind, c in zip(dims, before, chosen, strict=False):
                indices[d] = kind.indices[c]
            if dims:
                same = tuple(members)
                if same not in joined:
                    joined[same] = torch.cat([last.indices[k] for k in members]).sort().values
                indices[dims[-1]] = joined[same]
            holders, next_holders = (tuple(x[members[0]].nonzero()[0].tolist()) for x in (a, b))
            yield Move("", tuple(indices), holders, next_holders, rests if rests >= 0 else None)


@dataclass(frozen=True, eq=False)
class _Kinds:
    """The kinds of indices of a dim: those of one kind have the same holders now and then, and the same home.

    Attributes:
        now, then: for each kind its holders, bool (kinds, workers).
        home: for each kind its home; -1: none.
        indices: for each kind its sorted indices.
    """

    now: np.ndarray
    then: np.ndarray
    home: np.ndarray
    indices: list[Tensor]


def _kinds(dim: DealtDim, now: Assignment, then: Assignment, *, homes: bool) -> _Kinds:
    n, size = now.num_workers, len(dim.units)
    everywhere = torch.ones(n, 1, dtype=torch.bool)  # where id -1 looks
    held = torch.cat([torch.cat([a.held, everywhere], 1)[:, dim.units] for a in (now, then)]).numpy()
    home = np.arange(size) * n // max(1, size) if homes else np.full(size, -1)
    codes = np.concatenate([np.packbits(held, axis=0).T, home[:, None].astype(np.int32).view(np.uint8)], axis=1)
    codes = np.ascontiguousarray(codes).view(f"V{codes.shape[1]}").ravel()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(first)))[:-1])
    return _Kinds(held[:n, first].T, held[n:, first].T, home[first], [torch.from_numpy(part) for part in parts])


def num_elements(indices: Indices, shape: torch.Size) -> int:
    """Return how many elements of a tensor of ``shape`` are in ``indices``."""
    return math.prod(s if index is None else len(index) for s, index in zip(shape, indices, strict=True))
