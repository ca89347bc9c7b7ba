"""Axes, and the dims of tensors that run over their units."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from skerry.plan.rules import Role

T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """A set of interchangeable units, with the global ids ``start .. start + num_units - 1``."""

    name: str
    num_units: int
    kind: str = "neurons"
    start: int = 0


@dataclass(frozen=True, eq=False)
class DealtDim:
    """One tensor dim that is dealt out.

    Attributes:
        units: int32 of the dim's size: the global unit id of each index, -1 where an index is not dealt out. Dims that
            run over the same units in the same order share one tensor.
        role: ``"out"`` where the dim makes the units, ``"in"`` where it sums over them. The scale that makes up for
            the units a subnet did not have is folded into the ``"in"`` dims (see ``merge/calibrate.py``).
    """

    units: Tensor
    role: Role

    def look_up(self, values: Tensor, undealt: float) -> Tensor:
        """Return for each index the value of its unit, ``undealt`` where the index is not dealt out.

        Args:
            values: (..., num_units) by global unit id.
            undealt: for ids of -1.

        Returns:
            (..., size of the dim), of the dtype of ``values``.
        """
        last = values.new_full((*values.shape[:-1], 1), undealt)
        return torch.cat([values, last], -1)[..., self.units]  # index -1 is the last


Row = Sequence[DealtDim | None]
"""For each dim of a tensor how it is dealt out, None if it is not."""


def once_per_units(find: Callable[[DealtDim], T]) -> Callable[[DealtDim], T]:
    """Return ``find``, called once for all dims that share one tensor of unit ids (most dims of deep nets do)."""
    known: dict[int, tuple[DealtDim, T]] = {}  # with the dim: as long as its units live, no other has their identity

    def found(dim: DealtDim) -> T:
        if id(dim.units) not in known:
            known[id(dim.units)] = dim, find(dim)
        return known[id(dim.units)][1]

    return found


def row_key(row: Row) -> tuple[int | None, ...]:
    """Return what is equal for rows whose dims share their unit ids, and so move alike in an exchange."""
    return tuple(None if dim is None else id(dim.units) for dim in row)


def renumbered(dims: Mapping[str, Row], new_id: Tensor) -> dict[str, tuple[DealtDim | None, ...]]:
    """Return the same dims with unit u called ``new_id[u]`` (-1: not dealt out); rows with nothing left are dropped."""
    new_units = once_per_units(lambda dim: dim.look_up(new_id, -1))
    dealt = once_per_units(lambda dim: bool((new_units(dim) >= 0).any()))
    rows = {
        name: tuple(DealtDim(new_units(dim), dim.role) if dim is not None and dealt(dim) else None for dim in row)
        for name, row in dims.items()
    }
    return {name: row for name, row in rows.items() if any(dim is not None for dim in row)}
