"""The aggregation identity: the full network is better than its subnets are on average, by what they disagree.

With p subnet outputs u^l [n] and u their mean,

    ||y - u||^2 = (1/p) sum_l ||y - u^l||^2 - (1/p^2) sum_{l<l'} ||u^l - u^l'||^2.

This is algebra for any p vectors. What is checked is that the *aggregated* network, its consumers scaled by 1/p, has
just the mean of its trained subnets' outputs: true where each unit has one holder, so that nothing is averaged.

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, the identity in its section on aggregation.
"""

import torch

from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import error, extremes, trained
from skerry.experiments.theory.frame.verdict import Curve, Finding, Panel, Verdict
from skerry.merge.aggregate import aggregate_
from skerry.model.tensors import named_tensors
from skerry.partitions.assignment import Partition
from skerry.partitions.disjoint import Disjoint

TOLERANCE = 1e-12
"""Of sums of some thousand float64 numbers, relative."""


def check(
    *, seed: int = 0, width: int = 512, local: int = 10, num_rounds: int = 8, partition: Partition | None = None
) -> Finding:
    """Train rounds of local steps; compare both sides after each aggregation.

    Args:
        partition: who holds what; default: ``Disjoint`` over four workers. An overlapping one breaks the assumption.
    """
    partition = partition or Disjoint(4, seed)
    p, problem = partition.num_workers, shallow(seed=seed, width=width)
    share = partition.share(problem.plan.axes, 0)
    step = 0.5 / (float(share.mean()) * extremes(limit_kernel(problem.x))[1])
    off = 0.0
    means: list[float] = []
    fulls: list[float] = []
    spreads: list[float] = []
    for round in range(num_rounds):
        assignment = partition.assign(problem.plan.axes, round)
        subnets = [trained(problem, assignment.units(w), step=step, local=local)[0] for w in range(p)]
        with torch.no_grad():
            u = torch.stack([subnet(problem.x) for subnet in subnets])
        aggregate_(named_tensors(problem.model), problem.plan, assignment, [named_tensors(s) for s in subnets])
        mean = float((problem.y - u).square().sum(1).mean())
        spread = float((u[:, None] - u[None]).square().sum()) / (2 * p**2)  # each pair is in it twice
        full = error(problem, share)
        off = max(off, abs(full - (mean - spread)) / mean)
        means, fulls, spreads = [*means, mean], [*fulls, full], [*spreads, spread]
    rounds = range(1, num_rounds + 1)
    return Finding(
        source="arXiv 2112.02668, aggregation identity",
        verdicts=[
            Verdict(claim="both sides agree (relative difference)", bound=TOLERANCE, measured=off),
            Verdict(
                claim="full net's error over its subnets' mean error",
                bound=1.0,
                measured=max(full / mean for full, mean in zip(fulls, means, strict=True)),
            ),
        ],
        panels=[
            Panel(
                title=f"{p} subnets, {local} local steps",
                xlabel="rounds",
                ylabel="squared error",
                curves=[
                    Curve("mean of subnets", rounds, means),
                    Curve("full network", rounds, fulls),
                    Curve("their disagreement", rounds, spreads),
                ],
            )
        ],
    )
