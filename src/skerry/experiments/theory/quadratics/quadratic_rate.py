"""Quadratics without linear terms: permutation sketches converge linearly.

If b_i = 0, Wbar = E[Lbar Bbar + Bbar Lbar] / 2 is positive definite, E[Bbar Lbar Bbar] <= theta Wbar, and
gamma <= 1/theta, then

    E ||x^k||^2_Lbar <= (1 - gamma lambda_min(Lbar^(-1/2) Wbar Lbar^(-1/2)))^k ||x^0||^2_Lbar.

One line shows it: E f(x^{k+1}) = f - gamma x'Wbar x + (gamma^2/2) x' E[Bbar Lbar Bbar] x <= f - (gamma/2) x'Wbar x.

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, theorem 1. All constants are computed, none is estimated.
"""

import torch

from skerry.experiments.theory.frame.fit import mean
from skerry.experiments.theory.frame.quadratic import gap_panel, moments, permutation, random_quadratics, simulate
from skerry.experiments.theory.frame.verdict import Finding, Verdict, estimated


def check(
    *,
    seed: int = 0,
    n: int = 3,
    d: int = 6,
    runs: int = 60,
    num_rounds: int = 25,
    step: float = 1.0,
    linear: float = 0.0,
) -> Finding:
    """Compare the mean of ``runs`` with the bound, round by round.

    Args:
        step: gamma in units of 1 / theta; a value far above 1 breaks the assumption.
        linear: the size of b_i; any but 0 breaks the assumption.
    """
    problem = random_quadratics(seed, n, d, linear=linear)
    exact = moments(problem, permutation)
    gamma = step / exact.theta
    start = torch.ones(d, dtype=torch.float64)
    x = simulate(problem, permutation, start, step=gamma, num_rounds=num_rounds, runs=runs, seed=seed)
    gaps = problem.gaps(x)
    bound = gaps[0, 0] * (1 - gamma * exact.rate) ** torch.arange(num_rounds + 1, dtype=torch.float64)
    over = (gaps / bound).mean(0)
    worst = mean((gaps / bound)[:, 1 + int(over[1:].argmax())])
    return Finding(
        source="arXiv 2306.16484, theorem 1",
        verdicts=[
            Verdict("Wbar: smallest eigenvalue", ">", 0.0, float(torch.linalg.eigvalsh(exact.symmetric)[0])),
            estimated("worst mean gap over rate^k", "<", 1.0, worst),
        ],
        panels=[gap_panel(problem, x, bound)],
        notes=[f"theta {exact.theta:.3g}, rate {gamma * exact.rate:.3g} per round"],
    )
