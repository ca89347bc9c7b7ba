"""With linear terms, workers that differ leave a bias that no step size and no number of rounds removes.

Scaled permutation sketches of one coordinate, D_i = diag(L_i): x^{k+1} = (1 - gamma) x^k + gamma s^k with

    E x^k - x_inf = (1 - gamma)^k (x^0 - x_inf),
    x_inf = E s = n^(-3/2) sum_i D_i^(-1/2) b_i   !=   x* = Lbar^-1 bbar.

Runs start at x*, and leave it. Around x_inf they scatter with E ||x^k - x_inf||^2 -> gamma / (2 - gamma)
E ||s - E s||^2, which small steps do remove.

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, the section on heterogeneity (general b); the scatter follows from
the recursion.
"""

import math

import torch

from skerry.experiments.theory.frame.fit import mean
from skerry.experiments.theory.frame.quadratic import (
    Sketch,
    moments,
    random_quadratics,
    scaled_permutation,
    simulate,
)
from skerry.experiments.theory.frame.verdict import Finding, Verdict, estimated, over_rounds


def check(
    *,
    seed: int = 0,
    n: int = 5,
    runs: int = 30,
    num_rounds: int = 40,
    step: float = 0.2,
    linear: float = 1.0,
    sketch: Sketch = scaled_permutation,
) -> Finding:
    """Average the last iterates of independent runs and compare with both points.

    Args:
        linear: the size of b_i; at 0 there is no bias.
        sketch: any but the scaled sketch breaks the assumption.
    """
    problem = random_quadratics(seed, n, n, linear=linear)
    diagonal = problem.curvature.diagonal(dim1=1, dim2=2)
    limit = (diagonal**-0.5 * problem.linear).sum(0) / n**1.5
    away = limit - problem.solution
    distance = float(away.norm())
    towards = away / distance if distance else torch.ones(n, dtype=torch.float64) / n**0.5
    x = simulate(problem, sketch, problem.solution, step=step, num_rounds=num_rounds, runs=runs, seed=seed)
    bias = mean((x[:, -1] - problem.solution) @ towards)
    scatter = math.sqrt(step / (2 - step) * moments(problem, scaled_permutation).spread / runs)
    centre = x.mean(0)
    return Finding(
        source="arXiv 2306.16484, bias under heterogeneity",
        verdicts=[
            Verdict(
                "distance of the mean iterate from x_inf, in standard deviations",
                "<=",
                2.0,
                float((centre[-1] - limit).norm()) / max(scatter, 1e-12),
            ),
            Verdict(
                f"bias along x_inf - x*, difference from the formula's {distance:.3g}",
                "<=",
                0.0,
                abs(bias.value - distance),
                bias.margin,
            ),
            estimated("bias along x_inf - x*, above zero", ">", 0.0, bias),
        ],
        panels=[
            over_rounds(
                f"{n} workers, {runs} runs",
                "distance of the mean iterate",
                {
                    "from x*": (centre - problem.solution).norm(dim=1),
                    "from x_inf": (centre - limit).norm(dim=1),
                    "one standard deviation": [scatter] * (num_rounds + 1),
                },
            )
        ],
    )
