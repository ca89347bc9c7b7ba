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

from skerry.partition import Assignment
from skerry.plan import DealtDim, Plan

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


@dataclass(frozen=True, eq=False, slots=True)
class Transfer:
    """Elements of one tensor that ``source`` sends to ``target``.

    Attributes:
        move: what they have in common.
        indices: which elements, a part of ``move.indices``.
        source: the worker that sends.
        target: the worker that receives.
    """

    move: Move
    indices: Indices
    source: int
    target: int


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


@dataclass(frozen=True, eq=False)
class Stages:
    """The transfers of an exchange: first to collectors and straight to new places, then from collectors."""

    first: tuple[Transfer, ...]
    second: tuple[Transfer, ...]

    def bytes_from(self, worker: int, sizes: Mapping[str, Tensor]) -> int:
        """Return the bytes that ``worker`` sends."""
        sent = [t for t in (*self.first, *self.second) if t.source == worker]
        return sum(num_elements(t.indices, sizes[t.move.name].shape) * sizes[t.move.name].element_size() for t in sent)


def transfers(some_moves: Sequence[Move], sizes: Mapping[str, Tensor], *, average: bool = True) -> Stages:
    """Return who sends what to whom.

    Args:
        some_moves: all moves, or those that concern a worker.
        sizes: the full-size tensors by name.
        average: whether several holders have different values, of which the mean is meant.
    """
    first: list[Transfer] = []
    second: list[Transfer] = []
    for move in some_moves:
        if average and len(move.holders) > 1:
            targets = move.next_holders or (move.home,)
            for collector, indices in collected(move, sizes[move.name].shape):
                first += [Transfer(move, indices, w, collector) for w in move.holders if w != collector]
                second += [Transfer(move, indices, collector, t) for t in targets if t not in (None, collector)]
        else:
            at_home = () if move.home is None else (move.home,)
            (source, *_), targets = move.holders or at_home, move.next_holders or at_home
            new = set(targets) - set(move.holders) - {source}
            first += [Transfer(move, move.indices, source, t) for t in sorted(new)]
    return Stages(tuple(first), tuple(second))


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


def collected(move: Move, shape: torch.Size) -> list[tuple[int, Indices]]:
    """Return for each collector of a move the part that it collects."""
    counts = [s if index is None else len(index) for s, index in zip(shape, move.indices, strict=True)]
    if math.prod(counts) == 0:
        return []
    if not counts or max(counts) < len(move.holders):
        return [(move.holders[len(move.name) % len(move.holders)], move.indices)]
    dim = counts.index(max(counts))
    whole = move.indices[dim]
    index = torch.arange(counts[dim]) if whole is None else whole
    parts = zip(move.holders, index.tensor_split(len(move.holders)), strict=True)
    return [(w, (*move.indices[:dim], part, *move.indices[dim + 1 :])) for w, part in parts]


def num_elements(indices: Indices, shape: torch.Size) -> int:
    """Return how many elements of a tensor of ``shape`` are in ``indices``."""
    return math.prod(s if index is None else len(index) for s, index in zip(shape, indices, strict=True))


def traffic(plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, then: Assignment) -> Tensor:
    """Return the bytes ``[source, target]`` that workers send each other at the boundary between two rounds, float64.

    It counts, for every combination of holders now and then, how many elements there are, so it is fast for all workers
    at once. For elements that some but not all workers hold, collectors are counted with equal parts.

    Args:
        plan: what is dealt out.
        sizes: the full-size tensors by name (only shape and element size are looked at).
        now: who holds what in the round that ends.
        then: who holds what in the next one.
    """
    alike: dict[tuple[object, ...], list[str]] = {}  # tensors with the same table row
    for name, size in sizes.items():
        units = tuple(id(dim and dim.units) for dim in plan.row(name, size.shape))
        alike.setdefault((units, plan.block_of(name)), []).append(name)
    total = torch.zeros(now.num_workers, now.num_workers, dtype=torch.float64)
    for names in alike.values():
        shape = sizes[names[0]].shape
        row, block, home = plan.row(names[0], shape), plan.block_of(names[0]), home_dim(plan, names[0], shape)
        cells = max(1, math.prod(len(dim.units) for dim in row if dim is not None))
        total += sum(sizes[name].nbytes for name in names) / cells * _sends(row, block, home, now, then)
    return total


def _sends(
    row: Sequence[DealtDim | None], block: int | None, home: int | None, now: Assignment, then: Assignment
) -> Tensor:
    """Elements sent by and to each worker, of a tensor whose other dims have one index."""
    n = now.num_workers
    held, held_then = torch.ones(n, 1, dtype=torch.bool), torch.ones(n, 1, dtype=torch.bool)
    if block is not None:
        held, held_then = now.held[:, block, None], then.held[:, block, None]
    number, at_home = torch.ones(1, dtype=torch.float64), torch.full((1,), -1)
    for d, dim in enumerate(row):
        if dim is None:
            continue
        kinds = _kinds(dim, now, then, homes=d == home)
        held = (held[:, :, None] & torch.from_numpy(kinds.now.copy()).T[:, None, :]).flatten(1)
        held_then = (held_then[:, :, None] & torch.from_numpy(kinds.then.copy()).T[:, None, :]).flatten(1)
        counts = torch.tensor([len(index) for index in kinds.indices], dtype=torch.float64)
        number = (number[:, None] * counts).flatten()
        at_home = torch.maximum(at_home[:, None], torch.from_numpy(kinds.home)[None, :]).flatten()
    homes = torch.arange(n)[:, None] == at_home
    holders = held.sum(0)
    targets = torch.where(held_then.any(0), held_then, homes).double()
    one = torch.where(holders == 1, held, homes & (holders == 0)).double()  # the single source, where there is one
    several = torch.where(holders > 1, held, False).double()  # collectors, each of an equal part
    sends = (one * number) @ (targets * ~held).T
    sends += (several * number / holders.clamp(min=1)) @ (several + targets).T
    return sends.fill_diagonal_(0)
