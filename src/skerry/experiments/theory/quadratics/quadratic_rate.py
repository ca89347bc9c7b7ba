"""Quadratics without linear terms: permutation sketches converge linearly.

If b_i = 0, Wbar = E[Lbar Bbar + Bbar Lbar] / 2 is positive definite, E[Bbar Lbar Bbar] <= theta Wbar, and
gamma <= 1/theta, then

    E ||x^k||^2_Lbar <= (1 - gamma lambda_min(Lbar^(-1/2) Wbar Lbar^(-1/2)))^k ||x^0||^2_Lbar.

One line shows it: E f(x^{k+1}) = f - gamma x'Wbar x + (gamma^2/2) x' E[Bbar Lbar Bbar] x <= f - (gamma/2) x'Wbar x.

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, theorem 1. All constants are computed, none is estimated.
"""

import torch

from skerry.experiments.theory.frame.fit import mean
from skerry.experiments.theory.frame.quadratic import moments, permutation, random_quadratics, simulate
from skerry.experiments.theory.frame.verdict import Curve, Finding, Panel, Verdict, estimated


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
        step: gamma in units of 1 / theta; far above 1 it breaks the assumption.
        linear: the size of b_i; not 0 it breaks the assumption.
    """
    problem = random_quadratics(seed, n, d, linear=linear)
    exact = moments(problem, permutation)
    gamma = step / exact.theta
    x = simulate(
        problem,
        permutation,
        torch.ones(d, dtype=torch.float64),
        step=gamma,
        num_rounds=num_rounds,
        runs=runs,
        seed=seed,
    )
    gaps = problem.gaps(x)
    bound = gaps[0, 0] * (1 - gamma * exact.rate) ** torch.arange(num_rounds + 1, dtype=torch.float64)
    over = (gaps / bound).mean(0)
    worst = mean((gaps / bound)[:, 1 + int(over[1:].argmax())])
    rounds = range(num_rounds + 1)
    return Finding(
        source="arXiv 2306.16484, theorem 1",
        verdicts=[
            Verdict(
                claim="Wbar: smallest eigenvalue",
                bound=0.0,
                measured=float(torch.linalg.eigvalsh(exact.symmetric)[0]),
                sense=">",
            ),
            estimated("worst mean gap over rate^k", "<", 1.0, worst),
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
        notes=[f"theta {exact.theta:.3g}, rate {gamma * exact.rate:.3g} a round"],
    )
