"""The flaw of the released code: units that no subnet picked are set to zero, instead of being kept.

Theorem 3 of arXiv 2112.02668 is about the rule that keeps them (as ``aggregate_`` does).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skerry.aggregate import Piece, aggregate_
from skerry.partition import Assignment
from skerry.plan import Plan
from skerry.subnet import cuts, put_, take


@torch.no_grad()
def zero_unheld_(
    full: Mapping[str, Tensor], plan: Plan, assignment: Assignment, pieces: Sequence[Piece | None]
) -> None:
    """Aggregate as the release does: what belongs to a unit without a holder becomes zero in dealt "out" dims."""
    aggregate_(full, plan, assignment, pieces)
    nobody = (~assignment.held.any(0)).nonzero().flatten()
    by_name = cuts(plan, nobody)
    for name, row in plan.dims.items():
        cut = by_name[name]
        if cut is not None and any(dim is not None and dim.role == "out" for dim in row):
            put_(full[name], torch.zeros_like(take(full[name], cut)), cut)
