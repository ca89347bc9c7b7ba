"""The scaled sketch makes dealing harmless without linear terms: every dealing takes the same step.

With C_i = sqrt(n) ([L_i]_SS)^(-1/2) on S_i, (1/n) C_i L_i C_i is the projection on S_i, so Bbar = I for every dealing,
Wbar = Lbar, theta = 1, and with b_i = 0

    f(x^k) <= (1 - gamma)^k f(x^0) for gamma <= 1   (here even (1 - gamma)^(2k): x^{k+1} = (1 - gamma) x^k).

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, the scaled permutation sketch after theorem 1.
"""

import torch

from skerry.experiments.theory.frame.quadratic import (
    Sketch,
    moments,
    random_quadratics,
    scaled_permutation,
    simulate,
)
from skerry.experiments.theory.frame.verdict import Curve, Finding, Panel, Verdict


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
        linear: the size of b_i; not 0 it breaks the assumption.
        sketch: another one than the scaled sketch breaks the assumption.
    """
    problem = random_quadratics(seed, n, d, linear=linear)
    exact = moments(problem, sketch)
    start = torch.ones(d, dtype=torch.float64)
    x = simulate(problem, sketch, start, step=step, num_rounds=num_rounds, runs=runs, seed=seed)
    gaps = problem.gaps(x)
    bound = gaps[0, 0] * (1 - step) ** torch.arange(num_rounds + 1, dtype=torch.float64)
    rounds = range(num_rounds + 1)
    return Finding(
        source="arXiv 2306.16484, scaled permutation sketch",
        verdicts=[
            Verdict(
                claim="distance of Wbar from Lbar",
                bound=1e-12,
                measured=float((exact.symmetric - problem.mean_curvature).abs().max()),
            ),
            Verdict(claim="distance of theta from 1", bound=1e-12, measured=abs(exact.theta - 1)),
            Verdict(
                claim="worst gap of any run over (1 - gamma)^k",
                bound=1.0,
                measured=float((gaps / bound)[:, 1:].max()),
            ),
        ],
        panels=[
            Panel(
                title=f"{n} workers, {d} coordinates, {runs} runs",
                xlabel="rounds",
                ylabel="f - f*",
                curves=[
                    Curve("measured", rounds, gaps.mean(0).tolist()),
                    Curve("bound", rounds, bound.tolist()),
                ],
            )
        ],
    )
