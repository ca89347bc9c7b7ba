"""Units: which labels must be held together in the end, and why the rest is not dealt out.

Joined labels form connected components. A component is a unit unless it contains label 0. Some constraints can only be
checked once the units are known: that parts of a dim have the same share of each unit, and that a tensor's units lie
along one dim. Each violation joins more labels, until there is none left. This ends because every pass joins something.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.discovery.index_labels import Origin
from skerry.discovery.trace import Trace

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Units:
    """The units that a trace allows.

    Attributes:
        of: for each label its unit, a number; 0 for labels that are not dealt out.
        reads: the parameter dims that sum over units.
        makes: the parameter dims that make units.
        heads: the units that an attention softmax treats one by one.
        reasons: for each label the operation (its number in the trace) that kept it from being dealt out, or -1.
        tied: the operations at which a weight met units that it both makes and reads.
    """

    of: Ids
    reads: frozenset[Origin]
    makes: frozenset[Origin]
    heads: frozenset[int]
    reasons: Ids
    tied: frozenset[int]


def solve(trace: Trace, tied: Mapping[Origin, frozenset[Origin]]) -> Units:
    """Join labels until all constraints are met, and return the units.

    Args:
        trace: what the operations demand.
        tied: dims that make units and read them -> the dims that count as reading them instead (``tied_weights.py``).
    """
    constraints = trace.constraints
    edges = [
        (e.a.numpy(), e.b.numpy(), np.full(len(e.a), e.op))
        for e in constraints.edges
        if e.why != "statistic" or trace.live[e.op]
    ]
    reads = frozenset(origin for origin, role, _ in constraints.roles if role == "in")
    makes = frozenset(origin for origin, role, _ in constraints.roles if role == "out")
    instead = frozenset[Origin]().union(*tied.values())
    reads, makes = (reads - tied.keys()) | instead, makes - instead
    both = {o: max(op for origin, _, op in constraints.roles if origin == o) for o in reads & makes}
    for (name, d), at in both.items():  # a scale for the units it reads would also scale the units it makes
        ids = trace.origins[name][d]
        assert ids is not None
        edges.append((ids.numpy(), np.zeros(len(ids), np.int64), np.full(len(ids), at)))
    while True:
        a, b, op = (np.concatenate([e[k] for e in edges] or [np.zeros(0, np.int64)]) for k in range(3))
        of = components(trace.num_labels, a, b)
        more = [
            (x.flatten().numpy(), y.flatten().numpy(), np.full(x.numel(), at))
            for at, x, y in _violations(trace, torch.from_numpy(of))
        ]
        heads = frozenset(int(u) for ids in constraints.heads for u in np.unique(of[ids.numpy()])) - {0}
        more = more or _not_of_heads(trace, of, heads)
        if not more:
            break
        edges.extend(more)
    tied_at = frozenset(at for origin, at in both.items() if _is_tied(trace, origin))
    return Units(of, reads, makes, heads, _reasons(trace.num_labels, a, b, op), tied_at)


def _is_tied(trace: Trace, origin: Origin) -> bool:
    """Tell whether several modules use a weight, not only one and the modules that compute its weight."""
    modules = {trace.steps[op].module for found, _, op in trace.constraints.roles if found == origin}
    return not any(first and all(module.startswith(first) for module in modules) for first in modules)


def _not_of_heads(trace: Trace, of: Ids, heads: frozenset[int]) -> list[tuple[Ids, Ids, Ids]]:
    """Return edges that pin the labels of arguments which are in units other than heads."""
    found = []
    for _, _, _, labels in trace.arguments:
        ids = labels.numpy()
        others = ids[(of[ids] != 0) & ~np.isin(of[ids], list(heads))]
        if len(others):
            found.append((others, np.zeros_like(others), np.full(len(others), len(trace.steps) - 1)))
    return found


def wasted(trace: Trace, units: Units) -> frozenset[Origin]:
    """Return the dims (and broadcasts) that displaced other candidates by convention but are not dealt out in the end.

    A second trace without labels on these dims may find the candidates they displaced. With them are the picks of
    places that left nothing to deal out.
    """
    preferred = torch.unique(
        torch.cat([ids.flatten() for ids in trace.constraints.preferred] or [torch.zeros(0).long()])
    )
    lost = preferred.numpy()[units.of[preferred.numpy()] == 0]
    candidates = trace.broadcast | {
        (name, d): ids for name, rows in trace.origins.items() for d, ids in enumerate(rows) if ids is not None
    }
    displaced = frozenset(origin for origin, ids in candidates.items() if bool(np.isin(ids.numpy(), lost).all()))
    return displaced | {origin for origin, ids in trace.picked.items() if len(np.unique(units.of[ids.numpy()])) == 1}


def _violations(trace: Trace, of: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Return (operation, labels, labels to join them with) for each constraint on units that is violated."""
    found = []
    for ids, op in trace.constraints.outermost:
        units = of[ids]
        dims = [d for d in range(units.dim()) if bool((units != units.narrow(d, 0, 1)).any())]
        if len(dims) > 1:
            found.append((op, ids, ids.amin(dims[1:], keepdim=True).expand_as(ids)))
    for ids, dim, ends, op in trace.constraints.even_cuts:
        size = ids.shape[dim]
        units = of[ids].movedim(dim, -1).reshape(-1, size)
        if all(_same_share(row, end) for row in units for end in ends):
            continue
        period = math.gcd(size, *ends)  # of parts of one size, a unit may have the same place in each
        paired = ids.index_select(dim, torch.arange(size) % period)
        if period == 1 or bool((of[paired] == of[ids]).all()):
            paired = ids.amin(dim, keepdim=True).expand_as(ids)
        found.append((op, ids, paired))
    return found


def _same_share(units: Tensor, end: int) -> bool:
    """Return whether the first ``end`` places have as much of one unit as of another, so that the cut scales with them.

    Units of different sizes are of different axes. What all workers hold (0) may lie anywhere.
    """
    values, places = torch.unique(units, return_inverse=True)
    before, size = (torch.bincount(places[:k], minlength=len(values)) for k in (end, len(units)))
    pairs = torch.stack([size, before], 1)[values != 0]
    return len(torch.unique(pairs, dim=0)) == len(torch.unique(pairs[:, 0]))


def components(num_labels: int, a: Ids, b: Ids) -> Ids:
    """Return for each label the smallest label that it is connected with by the edges (a, b)."""
    of = np.arange(num_labels)
    while True:
        low = np.minimum(of[a], of[b])
        new = of.copy()
        np.minimum.at(new, of[a], low)  # whole components move at once, as in union-find
        np.minimum.at(new, of[b], low)
        np.minimum.at(new, a, low)
        np.minimum.at(new, b, low)
        while not np.array_equal(new, new[new]):
            new = new[new]
        if np.array_equal(new, of):
            return of
        of = new


def _reasons(num_labels: int, a: Ids, b: Ids, op: Ids) -> Ids:
    """Return the first operation that pinned each label's component, -1 where none did."""
    pins = (a == 0) | (b == 0)
    of = components(num_labels, a[~pins], b[~pins])
    first = np.full(num_labels, np.iinfo(np.int64).max)
    np.minimum.at(first, of[np.maximum(a, b)[pins]], op[pins])
    first = first[of]
    return np.where(first == np.iinfo(np.int64).max, -1, first)


Touched = Mapping[Origin, int]
"""The parameter dims in which a unit has indices, and how many."""


def alike(trace: Trace, units: Units) -> list[tuple[list[int], Touched]]:
    """Group units into axes: units with the same number of indices in the same dims are interchangeable.

    Returns for each axis its units, sorted, and the dims they touch.
    """
    touched: dict[int, dict[Origin, int]] = {}
    for name, rows in trace.origins.items():
        for d, ids in enumerate(rows):
            if ids is not None:
                found, counts = np.unique(units.of[ids.numpy()], return_counts=True)
                for unit, count in zip(found.tolist(), counts.tolist(), strict=True):
                    if unit:
                        touched.setdefault(unit, {})[name, d] = count
    groups: dict[tuple[tuple[Origin, int], ...], list[int]] = {}
    for unit, dims in touched.items():
        groups.setdefault(tuple(dims.items()), []).append(unit)
    return [(sorted(group), dict(key)) for key, group in groups.items()]
