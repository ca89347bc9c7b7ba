"""With the scaled sketch and no linear terms, it does not matter who holds what: every dealing takes the same step.

With C_i = sqrt(n) ([L_i]_SS)^(-1/2) on S_i, (1/n) C_i L_i C_i is the projection on S_i, so Bbar = I for every dealing,
Wbar = Lbar, theta = 1, and with b_i = 0

    f(x^k) <= (1 - gamma)^k f(x^0) for gamma <= 1   (here even (1 - gamma)^(2k): x^{k+1} = (1 - gamma) x^k).

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, the scaled permutation sketch after theorem 1.
"""

import torch

from skerry.experiments.theory.frame.quadratic import (
    Sketch,
    gap_panel,
    moments,
    random_quadratics,
    scaled_permutation,
    simulate,
)
from skerry.experiments.theory.frame.verdict import Finding, Verdict


def check(
    *,
    seed: int = 0,
    n: int = 3,
    d: int = 6,
    runs: int = 10,
    num_rounds: int = 20,
    step: float = 0.3,
    linear: float = 0.0,
    sketch: Sketch = scaled_permutation,
) -> Finding:
    """Compute Wbar and theta over all dealings, and follow runs.

    Args:
        linear: the size of b_i; any but 0 breaks the assumption.
        sketch: any but the scaled sketch breaks the assumption.
    """
    problem = random_quadratics(seed, n, d, linear=linear)
    exact = moments(problem, sketch)
    start = torch.ones(d, dtype=torch.float64)
    x = simulate(problem, sketch, start, step=step, num_rounds=num_rounds, runs=runs, seed=seed)
    gaps = problem.gaps(x)
    bound = gaps[0, 0] * (1 - step) ** torch.arange(num_rounds + 1, dtype=torch.float64)
    apart = float((exact.symmetric - problem.mean_curvature).abs().max())
    return Finding(
        source="arXiv 2306.16484, scaled permutation sketch",
        verdicts=[
            Verdict("distance of Wbar from Lbar", "<=", 1e-12, apart),
            Verdict("distance of theta from 1", "<=", 1e-12, abs(exact.theta - 1)),
            Verdict("worst gap of any run over (1 - gamma)^k", "<=", 1.0, float((gaps / bound)[:, 1:].max())),
        ],
        panels=[gap_panel(problem, x, bound)],
    )
