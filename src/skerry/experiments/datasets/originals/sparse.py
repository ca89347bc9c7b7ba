"""Sparse things: binary features, such as the words of a text, as rows of a matrix; the edges of a graph."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def frequent(sets: Iterable[Collection[str]], least: int) -> dict[str, int]:
    """Return a number for each item that at least ``least`` of the ``sets`` have, in alphabetical order."""
    counts = Counter(item for items in sets for item in items)
    return {item: k for k, item in enumerate(sorted(item for item, count in counts.items() if count >= least))}


def sparse_rows(key: str, rows: Sequence[Collection[str]], numbers: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Return a binary matrix, ``key_indptr``, ``key_indices``, ``key_shape``: row i has the known items of rows[i]."""
    found = [sorted(numbers[item] for item in row if item in numbers) for row in rows]
    return {
        f"{key}_indptr": np.cumsum([0, *map(len, found)]),
        f"{key}_indices": np.array([number for row in found for number in row], dtype=np.int32),
        f"{key}_shape": np.array([len(rows), len(numbers)]),
    }


def undirected(pairs: set[tuple[int, int]]) -> NDArray[np.int32]:
    """Return the edges between two different nodes, each once, (2, edges), sorted."""
    edges = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})
    return np.array(edges, np.int32).reshape(-1, 2).T.copy()
