"""The aggregation identity: the full network beats the average of its subnets by as much as they disagree.

With p subnet outputs u^l [n] and u their mean,

    ||y - u||^2 = (1/p) sum_l ||y - u^l||^2 - (1/p^2) sum_{l<l'} ||u^l - u^l'||^2.

This is algebra for any p vectors. What is checked: the output of the *aggregated* network, consumers scaled by 1/p, is
the mean of its trained subnets' outputs. That is true if each unit has one holder, so that nothing is averaged.

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, the identity in its section on aggregation.
"""

import torch

from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import error, extremes, trained
from skerry.experiments.theory.frame.verdict import Finding, Verdict, over_rounds
from skerry.merge.aggregate import aggregate_
from skerry.model.tensors import named_tensors
from skerry.partitions.assignment import Partition
from skerry.partitions.disjoint import Disjoint

TOLERANCE = 1e-12
"""Relative, for sums of some thousand float64 numbers."""


def check(
    *, seed: int = 0, width: int = 512, local: int = 10, num_rounds: int = 8, partition: Partition | None = None
) -> Finding:
    """Train for some rounds and compare both sides after each aggregation.

    Args:
        partition: default: ``Disjoint`` over four workers. An overlapping one breaks the assumption.
    """
    partition = partition or Disjoint(4, seed)
    p, problem = partition.num_workers, shallow(seed=seed, width=width)
    share = partition.share(problem.plan.axes, 0)
    step = 0.5 / (float(share.mean()) * extremes(limit_kernel(problem.x))[1])
    off = 0.0
    means, fulls, spreads = [], [], []
    for round in range(num_rounds):
        assignment = partition.assign(problem.plan.axes, round)
        subnets = [trained(problem, assignment.units(w), step=step, local=local)[0] for w in range(p)]
        with torch.no_grad():
            u = torch.stack([subnet(problem.x) for subnet in subnets])
        aggregate_(named_tensors(problem.model), problem.plan, assignment, [named_tensors(s) for s in subnets])
        means.append(float((problem.y - u).square().sum(1).mean()))
        spreads.append(float((u[:, None] - u[None]).square().sum()) / (2 * p**2))  # the sum has each pair twice
        fulls.append(error(problem, share))
        off = max(off, abs(fulls[-1] - (means[-1] - spreads[-1])) / means[-1])
    worst = max(full / mean for full, mean in zip(fulls, means, strict=True))
    return Finding(
        source="arXiv 2112.02668, aggregation identity",
        verdicts=[
            Verdict("both sides agree (relative difference)", "<=", TOLERANCE, off),
            Verdict("full net's error over its subnets' mean error", "<=", 1.0, worst),
        ],
        panels=[
            over_rounds(
                f"{p} subnets, {local} local steps",
                "squared error",
                {"mean of subnets": means, "full network": fulls, "their disagreement": spreads},
                first=1,
            )
        ],
    )
