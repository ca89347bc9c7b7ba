"""The flaw of the released code: units that no subnet picked are set to zero, instead of being kept.

Theorem 3 (``bernoulli_masks.py``) is about the rule that keeps them, as ``aggregate_`` does. A zeroed unit has no
gradient either, so it stays dead: after k rounds a share theta^k of the units is left, theta = 1 - (1 - xi)^p, and in
the end the network predicts 0 and its error is ||y||^2.

Source: the release that goes with Liao, Kyrillidis, 2022, arXiv 2112.02668, read by the team.
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
"""After so many rounds dead units are counted: some are left."""


@torch.no_grad()
def zero_unheld_(
    full: Mapping[str, Tensor], plan: Plan, assignment: Assignment, pieces: Sequence[Piece | None]
) -> None:
    """Aggregate as the release does: what makes a unit that nobody held becomes zero."""
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
    """Train the same problems by both rules.

    Args:
        num_rounds: ``COUNTED`` or more.
        rule: the one that is compared with keeping; ``aggregate_`` shows that the check can fail.
    """
    kept: list[Trace] = []
    zeroed: list[Trace] = []
    dead: list[list[float]] = []  # the share of units that are zero, [repeats, rounds]

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
                claim=f"share of units dead after k = {COUNTED} rounds, difference from 1 - theta^k",
                bound=0.0,
                measured=abs(lost.value - (1 - theta**COUNTED)),
                margin=lost.margin,
            ),
        ],
        panels=[
            error_panel(
                f"{width} units, keep {keep:g}, {workers} workers", {"unpicked units kept": kept, "zeroed": zeroed}
            )
        ],
    )
