"""A flaw of the released code: unassigned units are set to zero instead of being kept.

Theorem 3 (``bernoulli_masks.py``) is about keeping them, as ``aggregate_`` does. A zeroed unit has no gradient, so it
stays dead: after k rounds a share theta^k of the units is left, theta = 1 - (1 - xi)^p. In the end the network predicts
0 and its error is ||y||^2.

Source: the release that goes with Liao, Kyrillidis, 2022, arXiv 2112.02668, as read by us.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import mean, numbers
from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.rates import error_panel
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Aggregate, Trace, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Verdict, estimated
from skerry.merge.aggregate import Piece, aggregate_
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import put_, take

COUNTED = 6
"""The round after which dead units are counted, when some are still alive."""


@torch.no_grad()
def zero_unheld_(
    full: Mapping[str, Tensor], plan: Plan, assignment: Assignment, pieces: Sequence[Piece | None]
) -> None:
    """Aggregate as the release does: the incoming weights of an unassigned unit become zero."""
    aggregate_(full, plan, assignment, pieces)
    unheld = Cuts(plan, (~assignment.held.any(0)).nonzero().flatten())
    for name, row in plan.dims.items():
        cut = unheld.of(name)
        if cut is not None and any(dim is not None and dim.role == "out" for dim in row):
            put_(full[name], torch.zeros_like(take(full[name], cut)), cut)


def check(
    *,
    seed: int = 0,
    repeats: int = 5,
    width: int = 300,
    keep: float = 0.5,
    workers: int = 2,
    num_rounds: int = 30,
    rule: Aggregate = zero_unheld_,
) -> Finding:
    """Train the same problems with both rules.

    Args:
        num_rounds: ``COUNTED`` or more.
        rule: the rule compared with keeping; ``aggregate_`` shows that the check can fail.
    """
    kept: list[Trace] = []
    zeroed: list[Trace] = []
    dead: list[list[float]] = []  # share of units that are zero, [repeats, rounds]

    def counted(full: Mapping[str, Tensor], plan: Plan, assignment: Assignment, pieces: Sequence[Piece | None]) -> None:
        rule(full, plan, assignment, pieces)
        dead[-1].append(float((full["hidden.weight"] == 0).all(1).double().mean()))

    for s in range(seed, seed + repeats):
        dead.append([])
        for traces, aggregate in ((kept, aggregate_), (zeroed, counted)):
            problem = shallow(seed=s, width=width)
            eta = 0.5 / (keep * extremes(limit_kernel(problem.x))[1])
            partition = Bernoulli(workers, keep, s)
            traces.append(run(problem, partition, step=eta, local=1, num_rounds=num_rounds, aggregate=aggregate))
    harm = mean(numbers([z.floor() / k.floor() for z, k in zip(zeroed, kept, strict=True)]).log())
    lost, theta = mean(numbers([shares[COUNTED - 1] for shares in dead])), 1 - (1 - keep) ** workers
    return Finding(
        source="release of arXiv 2112.02668",
        verdicts=[
            estimated("zeroed over kept, log of the errors' last third", ">", 0.0, harm),
            Verdict(
                f"share of units dead after k = {COUNTED} rounds, difference from 1 - theta^k",
                "<=",
                0.0,
                abs(lost.value - (1 - theta**COUNTED)),
                lost.margin,
            ),
        ],
        panels=[
            error_panel(
                f"{width} units, keep {keep:g}, {workers} workers", {"unpicked units kept": kept, "zeroed": zeroed}
            )
        ],
    )
