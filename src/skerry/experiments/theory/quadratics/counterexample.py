"""Two coordinates that must stay on one worker: if Wbar is indefinite, a step of any size can raise f.

n = 2 workers with the same L = [[a, c], [c, b]], one coordinate each, no linear terms: Bbar = 2 diag(a, b), and

    Wbar = [[2 a^2, c (a+b)], [c (a+b), 2 b^2]]   is indefinite if and only if c > 2ab / (a+b),

which a positive definite L allows (c < sqrt(ab)). From an x with x'Wbar x < 0, f(x - gamma g) > f(x) for every
gamma > 0. The scaled sketch has Wbar = Lbar and lowers f from the same x.

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, the example after theorem 1.
"""

import math

import torch

from skerry.experiments.theory.frame.quadratic import (
    Quadratics,
    Sketch,
    moments,
    permutation,
    plan_of,
    round_,
    scaled_permutation,
)
from skerry.experiments.theory.frame.verdict import Finding, Panel, Verdict
from skerry.partitions.disjoint import Disjoint

A, B = 1.0, 0.1


def check(*, over: float = 1.3, steps: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)) -> Finding:
    """Compute Wbar around the threshold, and take one step from its worst direction.

    Args:
        over: c in units of the threshold 2ab/(a+b); a value of at most 1 breaks the assumption.
        steps: the values of gamma.
    """
    threshold = 2 * A * B / (A + B)
    problem = _problem(over * threshold)
    values, vectors = torch.linalg.eigh(moments(problem, permutation).symmetric)
    worst = vectors[:, 0]
    raised = [_change(problem, permutation, worst, gamma) for gamma in steps]
    lowered = [_change(problem, scaled_permutation, worst, gamma) for gamma in steps]
    factors = torch.linspace(0.5, math.sqrt(A * B) / threshold * 0.99, 40, dtype=torch.float64).tolist()
    smallest = [_smallest(factor * threshold) for factor in factors]
    return Finding(
        source="arXiv 2306.16484, counterexample",
        verdicts=[
            Verdict("L: smallest eigenvalue", ">", 0.0, float(torch.linalg.eigvalsh(problem.mean_curvature)[0])),
            Verdict("Wbar: smallest eigenvalue", "<", 0.0, float(values[0])),
            Verdict("1% below the threshold: the same is positive", ">", 0.0, _smallest(0.99 * threshold)),
            Verdict("least relative change of f in a step, of all step sizes: f rises", ">", 0.0, min(raised)),
            Verdict("scaled sketch: largest change of f from the same point: f falls", "<", 0.0, max(lowered)),
        ],
        panels=[
            Panel(
                f"a = {A:g}, b = {B:g}",
                "c / threshold",
                "smallest eigenvalue of Wbar",
                {"Wbar": (factors, smallest), "0": (factors, [0.0] * len(factors))},
                log="",
            )
        ],
    )


def _problem(c: float) -> Quadratics:
    one = torch.tensor([[A, c], [c, B]], dtype=torch.float64)
    return Quadratics(one.expand(2, 2, 2), torch.zeros(2, 2, dtype=torch.float64))


def _smallest(c: float) -> float:
    return float(torch.linalg.eigvalsh(moments(_problem(c), permutation).symmetric)[0])


def _change(problem: Quadratics, sketch: Sketch, start: torch.Tensor, gamma: float) -> float:
    """Return f(x^1) / f(x^0) - 1."""
    x = start.clone()
    round_(x, problem, Disjoint(2).assign(plan_of(2).axes, 0), sketch, gamma)
    return float(problem.gaps(x) / problem.gaps(start)) - 1
