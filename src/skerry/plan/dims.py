"""Axes, and the dims of tensors that run over their units."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from skerry.plan.rules import Role

T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """A set of interchangeable units.

    Attributes:
        name: unique in the plan.
        num_units: how many units it has.
        kind: what a unit is: ``"neurons"``, ``"channels"``, ``"heads"``, ``"blocks"``, ...
        start: global id of the first unit; the others follow without gaps.
    """

    name: str
    num_units: int
    kind: str = "neurons"
    start: int = 0

    @property
    def units(self) -> range:
        """Global ids of its units."""
        return range(self.start, self.start + self.num_units)


@dataclass(frozen=True, eq=False)
class DealtDim:
    """One tensor dim that is dealt out.

    Attributes:
        units: int32, (size of the dim,): the global unit id of each index, -1 where an index is not dealt out. Dims
            that have the same units in the same order share one tensor.
        role: ``"out"`` where the dim makes the units, ``"in"`` where it sums over them. Calibration scales the ``"in"``
            dims to make up for the units that a subnet did not have (``merge/calibrate.py``).
    """

    units: Tensor
    role: Role

    def look_up(self, values: Tensor, undealt: float) -> Tensor:
        """Return the value of each index's unit, ``undealt`` where an index is not dealt out.

        Args:
            values: (..., num_units) by global unit id.
            undealt: the value for ids of -1.

        Returns:
            (..., size of the dim), of the dtype of ``values``.
        """
        last = values.new_full((*values.shape[:-1], 1), undealt)
        return torch.cat([values, last], -1)[..., self.units]  # index -1 is the last


Row = Sequence[DealtDim | None]
"""How each dim of a tensor is dealt out, None where it is not."""


def once_per_units(find: Callable[[DealtDim], T]) -> Callable[[DealtDim], T]:
    """Return ``find`` with a cache: it is called once for all dims that share one tensor of unit ids."""
    known: dict[int, tuple[DealtDim, T]] = {}  # keeps the dim, so that no other tensor of ids gets the same id()

    def found(dim: DealtDim) -> T:
        if id(dim.units) not in known:
            known[id(dim.units)] = dim, find(dim)
        return known[id(dim.units)][1]

    return found


def row_key(row: Row) -> tuple[int | None, ...]:
    """Return a key that is the same for rows that share their unit ids; their tensors have the same moves."""
    return tuple(None if dim is None else id(dim.units) for dim in row)


def numbered(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Return the axes with their unit ids one after the other, from 0."""
    found: list[Axis] = []
    for axis in axes:
        found.append(replace(axis, start=found[-1].units.stop if found else 0))
    return tuple(found)


def renumbered_units(units: Mapping[str, int], new_id: Tensor) -> dict[str, int]:
    """Return ``units`` by name with unit u called ``new_id[u]``, without those that have none (-1)."""
    return {name: int(new_id[unit]) for name, unit in units.items() if new_id[unit] >= 0}


def renumbered(dims: Mapping[str, Row], new_id: Tensor) -> dict[str, tuple[DealtDim | None, ...]]:
    """Return the dims with unit u called ``new_id[u]`` (-1: not dealt out), without rows that have no units left."""
    new_units = once_per_units(lambda dim: dim.look_up(new_id, -1))
    dealt = once_per_units(lambda dim: bool((new_units(dim) >= 0).any()))
    rows = {
        name: tuple(DealtDim(new_units(dim), dim.role) if dim is not None and dealt(dim) else None for dim in row)
        for name, row in dims.items()
    }
    return {name: row for name, row in rows.items() if any(dim is not None for dim in row)}
