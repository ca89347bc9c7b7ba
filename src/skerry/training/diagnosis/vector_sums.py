"""Long vectors of all workers, measured on a few coordinates, and summed over processes.

The identity of ``measures.py`` holds on any coordinates, so ``MAX_COORDINATES`` of them are enough.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from skerry.randomness import generator

MAX_COORDINATES = 128


@cache
def coordinates(name: str, num: int) -> Tensor:
    """Return at most ``MAX_COORDINATES`` of the indices below ``num``, int64, the same in every call for ``name``."""
    if num <= MAX_COORDINATES:
        return torch.arange(num)
    return torch.randint(num, (MAX_COORDINATES,), generator=generator("watch", name))


def coordinates_of(names: list[str], sizes: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return coordinates of the vector of all tensors ``names``: names, and indices into each flat tensor."""
    picked, begin = coordinates("moves", sum(sizes[name].numel() for name in names)), 0
    found = []
    for name in names:
        end = begin + sizes[name].numel()
        found.append((name, picked[(picked >= begin) & (picked < end)] - begin))
        begin = end
    return [(name, indices) for name, indices in found if len(indices)]


def to_row(vectors: Sequence[Tensor]) -> Tensor:
    """Return the number, the sum of squared lengths and the sum of ``vectors``, float64; rows can be added up."""
    row = torch.zeros(2 + MAX_COORDINATES, dtype=torch.float64)
    row[0] = len(vectors)
    for vector in vectors:
        row[1] += vector.square().sum()
        row[2 : 2 + len(vector)] += vector
    return row


def squares(row: Tensor) -> tuple[float, float] | None:
    """Return the square of the mean and the mean of the squares of a row's vectors; None for fewer than two."""
    count, sum_of_squares, vector = float(row[0]), float(row[1]), row[2:]
    return (float((vector / count).square().sum()), sum_of_squares / count) if count > 1 else None
