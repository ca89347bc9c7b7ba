"""Indices of a dim: one type for what a worker holds, what is sent, and what is read from a file."""

from itertools import pairwise

import torch
from torch import Tensor

_MOST_RUNS = 4


class Index:
    """Sorted indices of a dim, without repeats.

    If they are a few runs of consecutive indices, only the runs are stored: they are smaller and faster to copy.

    Args:
        ids: int64, (number of indices,), sorted, on the CPU.

    Attributes:
        runs: the runs, as slices; None where there are too many.

    Example:
        >>> Index(torch.tensor([2, 3, 4, 9])).runs
        (slice(2, 5, None), slice(9, 10, None))
    """

    __slots__ = ("_ids", "runs")

    def __init__(self, ids: Tensor) -> None:
        self.runs = _runs(ids)
        self._ids = ids if self.runs is None else None

    @classmethod
    def run(cls, begin: int, end: int) -> "Index":
        """Return ``begin .. end - 1``."""
        index = cls.__new__(cls)
        index.runs, index._ids = (slice(begin, end),), None
        return index

    @property
    def ids(self) -> Tensor:
        """All indices, int64, on the CPU."""
        if self._ids is not None:
            return self._ids
        assert self.runs is not None
        parts = [torch.arange(run.start, run.stop, device="cpu") for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __len__(self) -> int:
        if self.runs is None:
            assert self._ids is not None
            return len(self._ids)
        return sum(run.stop - run.start for run in self.runs)

    def split(self, num: int) -> "list[Index]":
        """Return ``num`` parts of nearly the same size, in order."""
        return [Index(part) for part in self.ids.tensor_split(num)]

    @property
    def first(self) -> int:
        """The smallest index."""
        return self.runs[0].start if self.runs is not None else int(self.ids[0])


Cut = tuple[Index | None, ...]
"""For each dim of a tensor its indices, None for all. The part is their product; an empty tuple is the whole tensor."""


def _runs(ids: Tensor) -> tuple[slice, ...] | None:
    if len(ids) and int(ids[-1]) - int(ids[0]) == len(ids) - 1:  # at once, since most pieces of an exchange are such
        return (slice(int(ids[0]), int(ids[-1]) + 1),)
    ends = (ids[1:] != ids[:-1] + 1).nonzero().flatten() + 1
    if len(ends) >= _MOST_RUNS:
        return None
    bounds = [0, *ends.tolist(), len(ids)]
    return tuple(slice(int(ids[a]), int(ids[b - 1]) + 1) if b > a else slice(0, 0) for a, b in pairwise(bounds))


def cut_shape(shape: torch.Size, cut: Cut = ()) -> torch.Size:
    """Return the shape of the part ``cut`` of a tensor of ``shape``."""
    return torch.Size(
        size if index is None else len(index) for size, index in zip(shape, cut or (None,) * len(shape), strict=True)
    )


def whole(cut: Cut) -> bool:
    """Tell whether ``cut`` is the whole tensor."""
    return all(index is None for index in cut)


def same_cut(one: Cut | None, other: Cut | None) -> bool:
    """Tell whether two cuts of a tensor have the same elements; None stands for no part."""
    if one is None or other is None or len(one) != len(other):
        return one is other
    return all(
        a is b or (a is not None and b is not None and a.runs == b.runs and torch.equal(a.ids, b.ids))
        for a, b in zip(one, other, strict=True)
    )
