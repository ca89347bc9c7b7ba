"""With linear terms, gradients get small on average up to a bias that stays and a noise that the step size removes.

Let e = x - x*, h = Bbar x* - s (the step at the solution), Wbar and theta as in ``quadratic_rate.py``, and
gamma <= 1 / (4 theta):

    (1/K) sum_{k<K} E ||grad f(x^k)||^2_{Lbar^-1 Wbar Lbar^-1}
        <= 2 (f(x^0) - E f(x^K)) / (gamma K)  +  2 ||Lbar E h||^2_{Wbar^-1}  +  2 gamma E ||h||^2_Lbar.

It follows from E f(x^{k+1}) = f - gamma e'Wbar e - gamma e'Lbar E h + (gamma^2/2) E ||Bbar e + h||^2_Lbar,
||a + b||^2 <= 2 ||a||^2 + 2 ||b||^2, and |e'Lbar E h| <= ||e||^2_Wbar / 4 + ||Lbar E h||^2_{Wbar^-1}. The bias stays:
E e^k converges to e_inf = -(E Bbar)^-1 E h, so by Jensen's inequality the summands end at ||e_inf||^2_Wbar or above.

Source: Shulgin, Richtarik, 2023, arXiv 2306.16484, theorem 2: its terms and their roles (from a summary); the
constants are those of the derivation above, not the paper's.
"""

import torch

from skerry.experiments.theory.frame.fit import mean
from skerry.experiments.theory.frame.quadratic import moments, permutation, power, random_quadratics, simulate
from skerry.experiments.theory.frame.verdict import Finding, Verdict, estimated, over_rounds


def check(
    *,
    seed: int = 0,
    n: int = 3,
    d: int = 6,
    runs: int = 25,
    num_rounds: int = 100,
    step: float = 0.25,
    linear: float = 1.0,
) -> Finding:
    """Average gradients over rounds and runs.

    Args:
        step: gamma in units of 1 / theta; a value above 1/4 breaks the assumption.
        linear: the size of b_i; at 0 there is no bias.
    """
    problem = random_quadratics(seed, n, d, linear=linear)
    exact = moments(problem, permutation)
    lbar, gamma = problem.mean_curvature, step / exact.theta
    start = 3 * torch.ones(d, dtype=torch.float64)
    x = simulate(problem, permutation, start, step=gamma, num_rounds=num_rounds, runs=runs, seed=seed)
    e = x - problem.solution
    gradients = ((e @ exact.symmetric) * e).sum(2)  # [runs, rounds + 1]: ||grad f||^2 in the norm above
    values = problem.gaps(x)
    measured = mean(gradients[:, :-1].mean(1))
    pushed = lbar @ exact.shift
    bias = 2 * float(pushed @ power(exact.symmetric, -1.0) @ pushed)
    noise = 2 * gamma * exact.noise
    bound = 2 * float((values[:, 0] - values[:, -1]).mean()) / (gamma * num_rounds) + bias + noise
    stays = torch.linalg.solve(exact.mean, exact.shift)
    least = float(stays @ exact.symmetric @ stays)
    late = mean(gradients[:, -num_rounds // 4 :].mean(1))
    return Finding(
        source="arXiv 2306.16484, theorem 2",
        verdicts=[
            estimated("mean squared gradient, all rounds", "<", bound, measured),
            Verdict(
                "bias ||e_inf||^2_Wbar, at most the late mean squared gradient", "<=", late.value, least, late.margin
            ),
            Verdict("the bias is most of the late mean squared gradient: its share", ">", 0.5, least / late.value),
        ],
        panels=[
            over_rounds(
                f"{n} workers, {d} coordinates, {runs} runs",
                "mean squared gradient",
                {
                    "measured": gradients.mean(0),
                    "bias term of the bound": [bias] * (num_rounds + 1),
                    "noise term of the bound": [noise] * (num_rounds + 1),
                    "||e_inf||^2": [least] * (num_rounds + 1),
                },
            )
        ],
        notes=[f"the bound's terms: {bound - bias - noise:.3g} start, {bias:.3g} bias, {noise:.3g} noise"],
    )
