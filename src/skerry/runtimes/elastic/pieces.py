"""Pieces: what a member holds of a version of the run, and how new members get theirs from the old ones'.

A piece is what the process of one worker stores, as bytes. Every member holds its own piece and a copy of its
predecessor's, as the round began. When its worker has taken its local steps, the member's own piece has the new values.

When members change, each element of the model becomes, in this order of preference,

- the mean over the workers that have handed over what they trained, as in any exchange (``merge/aggregate.py``);
- the value at the round's start, of a worker that held it: one that is lost, by its copy, or was refused;
- the value that its owner stores, where no worker held it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.exchange.owners import owned_cut
from skerry.merge.aggregate import is_exact
from skerry.model.device import wide
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.runtimes.runtime import RESTING
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut, cut_shape
from skerry.subnet.slicing import put_, take


@dataclass(eq=False)
class Held:
    """What a member holds of a version.

    Attributes:
        workers: the members that it was dealt to, in the order of workers.
        layout: who holds what.
        own: the piece of the worker here, uint8.
        copy: the piece of its predecessor, as the round began.
        handed_over: whether the worker here has taken its local steps.
        good: whether its values count; otherwise ``own`` is as the round began.
        state: of the training as the round began, as text.
        optimizer: names, shapes and dtypes of the optimizer state that it has.
        began: when that was, by the clock of this process.
        recorded: whether the round before has a record.
        told: training loss, operations and seconds of the worker's local steps, once it has taken them.
    """

    workers: tuple[str, ...]
    layout: Assignment
    own: Tensor
    copy: Tensor
    handed_over: bool = False
    good: bool = True
    state: str = ""
    optimizer: Sequence[tuple[str, tuple[int, ...], str]] = ()
    began: float = 0.0
    recorded: bool = True
    told: tuple[float, float, float] = (math.nan, 0.0, 0.0)


@dataclass(frozen=True)
class Role:
    """What is known of a worker of the version that goes on.

    Attributes:
        rank: of the member that has its piece.
        is_copy: whether that is a copy.
        trained: whether the piece has the values after its local steps.
    """

    rank: int
    is_copy: bool
    trained: bool


def parts(plan: Plan, sizes: Mapping[str, Tensor], layout: Assignment, worker: int) -> Iterator[tuple[str, str, Cut]]:
    """Yield, in a fixed order, the parts of a worker's piece: their names in it, the tensors, and which elements."""
    cuts = Cuts(plan, layout.units(worker))
    for name in sorted(sizes):
        shape = sizes[name].shape
        held, owned = cuts.of(name, shape), owned_cut(plan, name, shape, worker, layout.num_workers)
        if held is not None:
            yield name, name, held
        if owned is not None:
            yield f"{RESTING}{name}", name, owned


def packed(piece: Mapping[str, Tensor], order: Sequence[str]) -> Tensor:
    """Return the bytes of the tensors of a piece, in this order."""
    flat = [piece[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name in order]
    return torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)


def num_bytes(plan: Plan, sizes: Mapping[str, Tensor], layout: Assignment, worker: int) -> int:
    """Return the size of a worker's piece."""
    found = parts(plan, sizes, layout, worker)
    return sum(cut_shape(sizes[n].shape, cut).numel() * sizes[n].element_size() for _, n, cut in found)


def unpacked(
    piece: Tensor, plan: Plan, sizes: Mapping[str, Tensor], layout: Assignment, worker: int
) -> dict[str, Tensor]:
    """Return the tensors of a piece."""
    found, at = {}, 0
    for key, name, cut in parts(plan, sizes, layout, worker):
        shape = cut_shape(sizes[name].shape, cut)
        end = at + shape.numel() * sizes[name].element_size()
        found[key] = piece[at:end].clone().view(sizes[name].dtype).view(shape)
        at = end
    assert at == len(piece), "the piece has another layout"
    return found


@torch.no_grad()
def deal_again(
    plan: Plan,
    sizes: Mapping[str, Tensor],
    mine: Mapping[int, Mapping[str, Tensor]],
    roles: Sequence[Role],
    layout: Assignment,
    then: Assignment,
    worker: int,
    total: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the new piece of the worker here, together with all other members; a tensor at a time is whole.

    Args:
        plan: what is dealt out.
        sizes: full-size tensors on the meta device, by name.
        mine: the pieces that this member has, by old worker.
        roles: of all old workers.
        layout: who held what.
        then: who holds what from now on.
        worker: the worker here from now on.
        total: adds a tensor up over all members.
    """
    wanted, new = dict[str, list[tuple[str, Cut]]](), dict[str, Tensor]()
    for key, name, cut in parts(plan, sizes, then, worker):
        wanted.setdefault(name, []).append((key, cut))
    cuts = [Cuts(plan, layout.units(old)) for old in range(len(roles))]
    for name in sorted(sizes):
        value, count = _contribution(plan, name, sizes[name], mine, roles, cuts)
        value, count = total(value), total(count)
        if not is_exact(sizes[name]):
            value = torch.where(count > 1, value / count.clamp(min=1), value)
        full = value.to(sizes[name].dtype)
        new |= {key: take(full, cut) for key, cut in wanted.get(name, ())}
    return new


def _contribution(
    plan: Plan,
    name: str,
    size: Tensor,
    mine: Mapping[int, Mapping[str, Tensor]],
    roles: Sequence[Role],
    cuts: Sequence[Cuts],
) -> tuple[Tensor, Tensor]:
    """Return this member's summand of each element of a tensor, and of how many values it is the sum."""
    exact = is_exact(size)
    like = torch.empty((), dtype=size.dtype)
    # -0.0 + x == x to the bit; in float64 the mean of equal float32 values is that value.
    value = torch.full(size.shape, 0 if exact else -0.0, dtype=torch.int64 if exact else wide(like))
    count, taken = torch.zeros(size.shape, dtype=torch.int32), torch.zeros(size.shape, dtype=torch.bool)

    def add(piece: Mapping[str, Tensor], key: str, cut: Cut, where: Tensor) -> None:
        put_(value, torch.where(where, take(value, cut) + piece[key].to(value.dtype), take(value, cut)), cut)
        put_(count, take(count, cut) + where.int(), cut)

    found = [(old, role, cuts[old].of(name, size.shape)) for old, role in enumerate(roles)]
    trained = [(old, cut) for old, role, cut in found if role.trained and cut is not None]
    others = [(old, cut) for old, role, cut in found if not role.trained and cut is not None]
    owned = [(old, owned_cut(plan, name, size.shape, old, len(roles))) for old in range(len(roles))]
    if not exact:
        for old, cut in trained:
            if old in mine:
                add(mine[old], name, cut, torch.ones(cut_shape(size.shape, cut), dtype=torch.bool))
        for _, cut in trained:
            put_(taken, torch.ones(cut_shape(size.shape, cut), dtype=torch.bool), cut)
        trained = []
    rest = [(old, f"{RESTING}{name}", cut) for old, cut in owned if cut is not None]
    for old, key, cut in [*((old, name, cut) for old, cut in [*trained, *others]), *rest]:
        free = ~take(taken, cut)  # the first one counts
        if old in mine:
            add(mine[old], key, cut, free)
        put_(taken, torch.ones_like(free), cut)
    return value, count
