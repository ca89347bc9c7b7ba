"""The expected masked kernel: a subnet has, on average, the full network's kernel times the probability xi of a unit.

With H = (1/m) sum_r C_r, (C_r)_ij = <x_i, x_j> 1{<w_r, x_i> >= 0, <w_r, x_j> >= 0}, and H_M the same sum over the units
of a mask M:

    E H_M = xi H;   for p disjoint masks that cover all units, (1/p) sum_l H_l = H / p exactly;
    E ||H_M - xi H||_F^2 = xi (1 - xi) / m^2 sum_r ||C_r||_F^2   for Bernoulli masks, so it falls as 1/m;
    lambda_min(H_l) > lambda_0 / 2 for all subnets l if m is large enough, lambda_0 = lambda_min(xi H_infinity).

The last line is the base of every rate in this folder. Liao and Kyrillidis give the width as Omega(n^2 ...); we compute
the eigenvalues instead.

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, theorem 1 (from a summary; that lambda_0 includes xi is our reading:
with the unmasked kernel's eigenvalue the later rates would be false for small xi).
"""

import math

import torch
from torch import Tensor

from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Problem, extremes, kernel
from skerry.experiments.theory.frame.verdict import Finding, Panel, Verdict
from skerry.partitions.assignment import Partition
from skerry.partitions.disjoint import Disjoint
from skerry.subnet.extract import extract


def check(
    *, seed: int = 0, width: int = 1000, workers: int = 4, draws: int = 50, partition: Partition | None = None
) -> Finding:
    """Compare the kernels of extracted subnets with that of the full network.

    Args:
        draws: the number of Bernoulli masks, with keep = 1 / workers.
        partition: default: ``Disjoint`` over ``workers``. One with a core breaks the assumption.
    """
    partition, keep = partition or Disjoint(workers, seed), 1 / workers
    problem = shallow(seed=seed, width=width)
    full = kernel(problem.model, problem.x)
    parts = torch.stack(kernels(problem, partition, 0))
    off = float((parts.mean(0) - full / workers).norm() / full.norm())
    drawn = torch.stack([h for k in range(draws) for h in kernels(problem, Bernoulli(1, keep, seed), k)])
    predicted = math.sqrt(keep * (1 - keep) * squares(problem))
    smallest = min(extremes(part)[0] for part in parts) / (keep * extremes(limit_kernel(problem.x))[0])
    shown = torch.arange(1, draws + 1)
    means = [float((drawn[:k].mean(0) - keep * full).norm()) for k in shown]
    away = means[-1] * math.sqrt(draws) / predicted
    return Finding(
        source="arXiv 2112.02668, theorem 1",
        verdicts=[
            Verdict("disjoint subnets' mean kernel is H/p (relative difference)", "<=", 1e-12, off),
            Verdict(
                "Bernoulli masks: distance of the mean of draws from xi H, in standard deviations", "<=", 2.0, away
            ),
            Verdict("a subnet kernel's smallest eigenvalue, over lambda_0", ">", 0.5, smallest),
        ],
        panels=[
            Panel(
                f"mean of masked kernels, keep {keep:.3g}",
                "draws",
                "distance from xi H",
                {"measured": (shown, means), "predicted": (shown, [predicted / math.sqrt(k) for k in shown])},
                log="xy",
            )
        ],
    )


def kernels(problem: Problem, partition: Partition, round: int) -> list[Tensor]:
    """Return the kernel of each worker's subnet in ``round``."""
    assignment = partition.assign(problem.plan.axes, round)
    return [
        kernel(extract(problem.model, problem.plan, assignment.units(w)), problem.x)
        for w in range(assignment.num_workers)
    ]


def squares(problem: Problem) -> float:
    """Return sum_r ||C_r||_F^2 / m^2: the sum of <x_i, x_j>^2 over pairs i, j that are both active at unit r."""
    on = (problem.x @ problem.model.get_parameter("hidden.weight").detach().T >= 0).double()  # [n, m]
    return float(((problem.x @ problem.x.T).square() * (on @ on.T)).sum()) / on.shape[1] ** 2
