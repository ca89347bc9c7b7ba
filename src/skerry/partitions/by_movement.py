"""Dealing by movement: each client drops other units, by how much they have moved and by how fast the client is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from skerry.plan.dims import Axis
from skerry.randomness import generator


def kept_by_movement(axes: Sequence[Axis], moved: Tensor, drop: float, rank: float, *key: int | str) -> Tensor:
    """Return the sorted global ids of the units that a client keeps, int64.

    Units of an axis are ordered by ``moved``, most first, and by chance where it is equal. Of N units a client drops
    ``drop`` N in a row: the fastest client (``rank`` 0) those that moved most, the slowest one (1) those that moved
    least, and others those between.

    Args:
        axes: with the units.
        moved: (num_units,), how much each has moved.
        drop: the fraction that is dropped, 0 to below 1.
        rank: of the client by speed, 0 to 1.
        key: of the chance.

    Example:
        >>> moved = torch.tensor([0.3, 0.1, 0.4, 0.2])
        >>> kept_by_movement((Axis("a", 4),), moved, 0.25, 0.0), kept_by_movement((Axis("a", 4),), moved, 0.25, 1.0)
        (tensor([0, 1, 3]), tensor([0, 2, 3]))
    """
    kept = torch.ones(len(moved), dtype=torch.bool)
    for axis in axes:
        num = axis.num_units - num_kept(axis, drop)
        first = round(rank * (axis.num_units - num))
        order = torch.randperm(axis.num_units, generator=generator(*key, axis.name))
        order = order[moved[axis.start + order].argsort(descending=True, stable=True)]
        kept[axis.start + order[first : first + num]] = False
    return kept.nonzero().flatten()


def num_kept(axis: Axis, drop: float) -> int:
    """Return how many units of an axis a client keeps: at least one."""
    return max(1, int((1 - drop) * axis.num_units + 0.5))
