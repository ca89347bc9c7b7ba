"""Groups of tensors that are exchanged one group after the other, so that lists of their moves take little memory."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from skerry.exchange.moves import Known, Move, moves
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan

_GROUP_BYTES = 2**27
_ROWS_KNOWN = 4
"""Moves of so many table rows are remembered; layers of a net often have the same rows."""


def grouped_moves(
    plan: Plan, sizes: Mapping[str, Tensor], now: Assignment, then: Assignment, worker: int
) -> Iterator[tuple[dict[str, Tensor], list[Move]]]:
    """Yield groups of full-size tensors, in the order of their names, with the moves of each that concern ``worker``.

    Args:
        plan: what is dealt out.
        sizes: full-size tensors on the meta device, by name.
        now: who holds what in the round that ends.
        then: who holds what in the next one.
        worker: the worker of this process.
    """
    known: Known = {}
    for group in groups(sizes):
        seen = set(known)
        yield group, list(moves(plan, group, now, then, worker, known))
        if len(known) > _ROWS_KNOWN:  # keep what this group has found
            known = {row: found for row, found in known.items() if row not in seen}


def groups(sizes: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Divide full-size tensors, in the order of their names, into groups of at most 128 MiB (or of one tensor)."""
    group: dict[str, Tensor] = {}
    left = _GROUP_BYTES
    for name in sorted(sizes):
        if group and sizes[name].nbytes > left:
            yield group
            group, left = {}, _GROUP_BYTES
        group[name] = sizes[name]
        left -= sizes[name].nbytes
    if group:
        yield group
