"""Routes: who sends what to whom, as transfers of one worker and as bytes of all workers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.exchange.moves import Move, kinds_of
from skerry.exchange.owners import owner_dim, whole_owner
from skerry.partitions.assignment import Assignment
from skerry.plan.dims import DealtDim, row_key
from skerry.plan.table import Plan
from skerry.subnet.index import Cut, Index, cut_shape


@dataclass(frozen=True, eq=False, slots=True)
class Transfer:
    """Elements of one tensor that ``source`` sends to ``target``.

    Attributes:
        move: the move that they are a part of.
        cut: which elements.
        source: the worker that sends.
        target: the worker that receives.
    """

    move: Move
    cut: Cut
    source: int
    target: int


@dataclass(frozen=True, eq=False)
class Stages:
    """The transfers of an exchange: first to collectors and from single sources, then from collectors."""

    first: tuple[Transfer, ...]
    second: tuple[Transfer, ...]

    def bytes_from(self, worker: int, sizes: Mapping[str, Tensor]) -> int:
        """Return the bytes that ``worker`` sends."""
        sent = [t for t in (*self.first, *self.second) if t.source == worker]
        return sum(cut_shape(sizes[t.move.name].shape, t.cut).numel() * sizes[t.move.name].element_size() for t in sent)


def transfers(some_moves: Sequence[Move], sizes: Mapping[str, Tensor], *, average: bool = True) -> Stages:
    """Return the transfers that ``some_moves`` need.

    Args:
        some_moves: all moves, or those that concern a worker.
        sizes: the full-size tensors by name (only shapes are used).
        average: whether to average over several holders; False where their values are equal.
    """
    first: list[Transfer] = []
    second: list[Transfer] = []
    for move in some_moves:
        if average and len(move.holders) > 1:
            targets = move.next_holders or (move.owner,)
            for collector, cut in collected(move, sizes[move.name].shape):
                first += [Transfer(move, cut, w, collector) for w in move.holders if w != collector]
                second += [Transfer(move, cut, collector, t) for t in targets if t not in (None, collector)]
        else:
            by_owner = () if move.owner is None else (move.owner,)
            (source, *_), targets = move.holders or by_owner, move.next_holders or by_owner
            new = set(targets) - set(move.holders) - {source}
            first += [Transfer(move, move.cut, source, t) for t in sorted(new)]
    return Stages(tuple(first), tuple(second))


def collected(move: Move, shape: torch.Size) -> list[tuple[int, Cut]]:
    """Return the collectors of a move, each with the part that it collects."""
    counts = cut_shape(shape, move.cut)
    if counts.numel() == 0:
        return []
    if not counts or max(counts) < len(move.holders):
        return [(move.holders[len(move.name) % len(move.holders)], move.cut)]
    dim = counts.index(max(counts))
    index = move.cut[dim] or Index.run(0, counts[dim])
    parts = zip(move.holders, index.split(len(move.holders)), strict=True)
    return [(w, (*move.cut[:dim], part, *move.cut[dim + 1 :])) for w, part in parts]


def traffic(plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, then: Assignment) -> Tensor:
    """Return the bytes that workers send each other between two rounds.

    It counts the elements of every combination of holders now and then, so it is fast for all workers at once.
    Collectors are counted with equal parts.

    Args:
        plan: what is dealt out.
        sizes: the full-size tensors by name (only shapes and element sizes are used).
        now: who holds what in the round that ends.
        then: who holds what in the next one.

    Returns:
        float64, (workers, workers): bytes from source (row) to target (column).

    Example:
        >>> from torch import nn
        >>> from skerry.partitions import Everything
        >>> model = nn.Linear(3, 2, bias=False)
        >>> now = Everything(2).assign((), 0)
        >>> traffic(Plan.whole(model), dict(model.named_parameters()), now, now)
        tensor([[ 0., 24.],
                [24.,  0.]], dtype=torch.float64)
    """
    alike: dict[tuple[object, ...], list[str]] = {}  # tensors with the same table row
    for name, size in sizes.items():
        alike.setdefault((row_key(plan.row(name, size.shape)), plan.block_of(name)), []).append(name)
    total = torch.zeros(now.num_workers, now.num_workers, dtype=torch.float64)
    for names in alike.values():
        shape = sizes[names[0]].shape
        row, block, along = plan.row(names[0], shape), plan.block_of(names[0]), owner_dim(plan, names[0], shape)
        cells = max(1, math.prod(len(dim.units) for dim in row if dim is not None))
        whole = whole_owner(plan, names[0], shape, now.num_workers)
        total += sum(sizes[name].nbytes for name in names) / cells * _sends(row, block, along, whole, now, then)
    return total


def _sends(
    row: Sequence[DealtDim | None],
    block: int | None,
    along: int | None,
    whole: int | None,
    now: Assignment,
    then: Assignment,
) -> Tensor:
    """Return the elements sent from each worker to each, for a tensor whose other dims have one index."""
    n = now.num_workers
    held, held_then = torch.ones(n, 1, dtype=torch.bool), torch.ones(n, 1, dtype=torch.bool)
    if block is not None:
        held, held_then = now.held[:, block, None], then.held[:, block, None]
    number, owner = torch.ones(1, dtype=torch.float64), torch.full((1,), -1 if whole is None else whole)
    for d, dim in enumerate(row):
        if dim is None:
            continue
        kinds = kinds_of(dim, now, then, owners=d == along)
        held = (held[:, :, None] & torch.from_numpy(kinds.now.copy()).T[:, None, :]).flatten(1)
        held_then = (held_then[:, :, None] & torch.from_numpy(kinds.then.copy()).T[:, None, :]).flatten(1)
        counts = torch.tensor([len(index) for index in kinds.indices], dtype=torch.float64)
        number = (number[:, None] * counts).flatten()
        owner = torch.maximum(owner[:, None], torch.from_numpy(kinds.owner)[None, :]).flatten()
    owners = torch.arange(n)[:, None] == owner
    holders = held.sum(0)
    targets = torch.where(held_then.any(0), held_then, owners).double()
    one = torch.where(holders == 1, held, owners & (holders == 0)).double()  # the single source, where there is one
    several = torch.where(holders > 1, held, False).double()  # collectors, each of an equal part
    sends = (one * number) @ (targets * ~held).T
    sends += (several * number / holders.clamp(min=1)) @ (several + targets).T
    return sends.fill_diagonal_(0)
