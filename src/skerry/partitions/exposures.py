"""Exposure: how much of the model participants have held, known in advance from the assignments.

It counts what is dealt out to train on. A server, and in the ``processes`` runtime the owner ranks that store what is
unassigned, see more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from skerry.partitions.assignment import Partition
from skerry.plan.dims import Axis, DealtDim
from skerry.plan.table import Plan
from skerry.whole_number import check_whole_number

_MOST = 2**28
"""Pairs of units times sets of participants that are looked at; beyond it bounds are returned."""
_CHUNK = 64  # rounds


@dataclass(frozen=True)
class Exposure:
    """The share of the model that the most curious participants have held.

    Attributes:
        units: the share of the units; 1 if there are none, since then everybody has everything.
        elements: the share of the elements of parameters and buffers; None if only axes were given. An element between
            two units was held by who held both in one round; one of no unit is held by all.
        exact: whether both are exact; else they are upper bounds.
    """

    units: float
    elements: float | None
    exact: bool

    def __str__(self) -> str:
        most = "" if self.exact else "at most "
        elements = "" if self.elements is None else f", {most}{self.elements:.1%} of the elements"
        return f"{most}{self.units:.1%} of the units{elements}"


class Log:
    """What each participant has held so far.

    Args:
        partition: who holds what.
        axes: of the plan.
        since: the first round that counts.
        before: the share of the units that one has held in earlier rounds, among other participants.
    """

    def __init__(self, partition: Partition, axes: Sequence[Axis], since: int = 0, before: float = 0.0) -> None:
        self._partition, self._axes, self._done, self._before = partition, axes, since, before
        self.held = torch.zeros(partition.num_workers, sum(axis.num_units for axis in axes), dtype=torch.bool)

    def units(self, num_rounds: int) -> float:
        """Return the share of the units that some participant has held in the first ``num_rounds`` rounds, or more
        rounds if more were asked for before. With other participants before it is a bound: nobody knows who is who.
        """
        while self._done < num_rounds and not bool(self.held.all()):
            self.held |= self._partition.assign(self._axes, self._done).held
            self._done += 1
        now = float(self.held.double().mean(1).max()) if self.held.numel() else 1.0
        return min(1.0, self._before + now)


def exposure(partition: Partition | None, axes: Plan | Sequence[Axis], rounds: int, colluders: int = 1) -> Exposure:
    """Return the largest share of the model that any ``colluders`` participants together have held after ``rounds``.

    Nothing is trained for it: assignments are known in advance. For one participant it is exact, and for more where
    there are few sets of them; else a bound, the sum of the largest shares. Elements of plans with very many units are
    bounded, too: as if who held two units had held them in one round.

    Args:
        partition: who holds what; ``algorithm.held_by()`` has a row per client where there are clients, and is None if
            nobody knows.
        axes: of the plan, or the plan of what is trained (``skerry.training.net_to_train``), to count elements, too.
        rounds: of the training.
        colluders: participants that put together what they have held.

    Raises:
        ValueError: ``partition`` is None or no partition, there are not as many participants, or ``rounds`` is below 1.

    Example:
        >>> from skerry.partitions import Cyclic, Disjoint, Everything
        >>> axes = (Axis("nets", 4),)
        >>> [exposure(Cyclic(4), axes, rounds).units for rounds in (1, 2, 4)]  # a relay of four
        [0.25, 0.5, 1.0]
        >>> exposure(Everything(4), axes, 1).units, exposure(Disjoint(4), axes, 1, colluders=2).units
        (1.0, 0.5)
    """
    check_whole_number("rounds", rounds, 1)
    check_whole_number("colluders", colluders, 1)
    if partition is None:
        raise ValueError("partition=None: units are dealt by movement, so nobody knows in advance who will hold what")
    if not hasattr(partition, "assign"):
        raise ValueError(f"partition is of type {type(partition).__name__}: expected a partition: algorithm.held_by()")
    num, plan = partition.num_workers, axes if isinstance(axes, Plan) else None
    if colluders > num:
        raise ValueError(f"colluders={colluders}: expected at most {num}, the number of participants")
    axes = axes.axes if isinstance(axes, Plan) else axes
    if not axes or bool(partition.assign(axes, 0).held.all(1).any()):
        return Exposure(1.0, None if plan is None else 1.0, True)
    log = Log(partition, axes)
    log.units(rounds)
    held, size = log.held, 1 if plan is None else log.held.shape[1] ** 2
    pairs = _pairs(partition, axes, rounds) if plan is not None and num * size <= _MOST else None
    few = comb(num, colluders) * (size if pairs is not None else held.shape[1]) <= _MOST
    groups = [list(group) for group in combinations(range(num), colluders if few else 1)]
    shares = [_shares(plan, held[g].any(0), None if pairs is None else pairs[g].any(0)) for g in groups]
    found = torch.tensor(shares, dtype=torch.float64)
    if few:
        most = found.amax(0)
    else:
        of_all = torch.tensor(_shares(plan, torch.zeros_like(held[0]), None), dtype=torch.float64)
        most = (of_all + (found - of_all).sort(0, descending=True).values[:colluders].sum(0)).clamp(max=1)
    units, elements = most.tolist()
    exact = few and (plan is None or (pairs is not None and all(_num_dealt(plan, name) <= 2 for name in plan.dims)))
    return Exposure(units, None if plan is None else elements, exact)


def _pairs(partition: Partition, axes: Sequence[Axis], rounds: int) -> Tensor:
    """Return who has held which two units in one round, (participants, num_units, num_units) bool."""
    num_units = sum(axis.num_units for axis in axes)
    found = torch.zeros(partition.num_workers, num_units, num_units, dtype=torch.bool)
    for first in range(0, rounds, _CHUNK):
        some = [partition.assign(axes, r).held for r in range(first, min(first + _CHUNK, rounds))]
        held = torch.stack(some, 1).float()  # (participants, rounds, num_units)
        found |= held.mT @ held > 0
        if bool(found.all()):
            break
    return found


def _shares(plan: Plan | None, held: Tensor, pairs: Tensor | None) -> tuple[float, float]:
    """Return the shares of units and elements that are seen by who has held units, (num_units,), and pairs of them."""
    elements = total = 0.0
    if plan is None:
        return float(held.double().mean()), 1.0
    for name, shape in plan.shapes.items():
        block, dims = plan.block_of(name), [dim for dim in plan.dims.get(name, ()) if dim is not None]
        share = 1.0 if block is None or held[block] else 0.0
        if len(dims) >= 2 and pairs is not None:
            share *= _of_two(pairs, dims[0], dims[1])
        else:
            for dim in dims:
                share *= float(dim.look_up(held, True).double().mean())
        elements, total = elements + share * shape.numel(), total + shape.numel()
    return float(held.double().mean()), elements / max(1.0, total)


def _of_two(pairs: Tensor, one: DealtDim, other: DealtDim) -> float:
    """Return the share of the elements between two dims of which both units were held in one round."""
    ever = pairs.diagonal()
    rows = torch.cat([pairs, ever[None]])[one.units]  # index -1 is the last: of no unit
    last = torch.cat([ever, ever.new_ones(1)])[one.units]
    return float(torch.cat([rows, last[:, None]], 1)[:, other.units].double().mean())


def _num_dealt(plan: Plan, name: str) -> int:
    return sum(dim is not None for dim in plan.dims[name]) + (plan.block_of(name) is not None)
