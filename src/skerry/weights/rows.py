"""How the rows of a tensor are filled with fresh values, from a random generator."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Fill = Callable[[Tensor, torch.Generator, int], object]
"""``fill(block, rng, row)`` writes the values of row ``row`` (its index along dim 0) of a tensor into ``block``.

A tensor of one or no dim is a single block, its row 0. The values must depend on the arguments only, so that each
process can draw the rows that it needs. ``block`` is on the CPU; it is float32 if the tensor has a smaller float type.
"""


@dataclass(frozen=True)
class Uniform:
    """Values drawn from U(-bound, bound)."""

    bound: float

    def __call__(self, block: Tensor, rng: torch.Generator, row: int) -> None:
        """Draw ``block``."""
        block.uniform_(-self.bound, self.bound, generator=rng)


@dataclass(frozen=True)
class Normal:
    """Values drawn from N(0, std²); ``zero_row``, if given, is zero (the padding of an embedding)."""

    std: float
    zero_row: int | None = None

    def __call__(self, block: Tensor, rng: torch.Generator, row: int) -> None:
        """Draw ``block``."""
        block.normal_(0, self.std, generator=rng) if row != self.zero_row else block.zero_()


@dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, block: Tensor, rng: torch.Generator, row: int) -> None:
        """Fill ``block``."""
        block.fill_(self.value)


def inverse_root(size: int) -> float:
    """Return 1 / sqrt(size), 0 for size 0."""
    return 1 / math.sqrt(size) if size else 0.0
