"""What masked training minimises: the mean of the loss over masks, f~, and not the loss f of the whole.

With a permutation sketch C_i and h(x) = (1/n) sum_i f_i(C_i x) of a dealing, a round is x^{k+1} = x^k - gamma grad
h(x^k), so it is SGD on

    f~(x) = E h(x) = x' E[Bbar] x / 2 - x' E s,   least at x~ = E[Bbar]^-1 E s,   f~ >= f   (Jensen, since E C_i = I).

Each h is convex and L_h-smooth, L_h = lambda_max(Bbar). With L = max L_h, mu~ = lambda_min(E Bbar), gamma <= 1/L:

    E ||x^k - x~||^2 <= (1 - gamma mu~)^k ||x^0 - x~||^2 + (2 gamma L / mu~) (f~(x~) - E inf h).

One line shows it: E ||grad h(x)||^2 <= 2 L (f~(x) - E inf h), and f~(x) - f~(x~) >= 0 absorbs the rest.

Source: Demidovich et al.: MAST: Model-Agnostic Sparsified Training, ICLR 2025, arXiv 2311.16086, with v = 0 (its
problem and the form of its theorem; the constants are those of the derivation above).
"""

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import mean
from skerry.experiments.theory.frame.quadratic import (
    Quadratics,
    Sketch,
    over_dealings,
    permutation,
    random_quadratics,
    simulate,
)
from skerry.experiments.theory.frame.verdict import Finding, Verdict, estimated, over_rounds
from skerry.randomness import generator


def check(
    *,
    seed: int = 0,
    n: int = 3,
    d: int = 6,
    runs: int = 40,
    num_rounds: int = 60,
    step: float = 1.0,
    linear: float = 1.0,
    sketch: Sketch = permutation,
) -> Finding:
    """Compute f~ over all dealings, and follow runs from far away.

    Args:
        step: gamma in units of 1 / L; a value far above 1 breaks the assumption.
        linear: the size of b_i; at 0 both functions are least at 0.
        sketch: one with E C_i other than I breaks Jensen's inequality.
    """
    problem = random_quadratics(seed, n, d, linear=linear)
    bs, ss = over_dealings(problem, sketch)
    curvature, source = bs.mean(0), ss.mean(0)
    solution = torch.linalg.solve(curvature, source)
    lowest = -0.5 * (ss * torch.linalg.solve(bs, ss)).sum(1)  # inf h of each dealing
    largest, least = float(torch.linalg.eigvalsh(bs).max()), float(torch.linalg.eigvalsh(curvature)[0])
    gamma = step / largest
    noise = float(-0.5 * source @ solution - lowest.mean())
    x = simulate(problem, sketch, solution + 3, step=gamma, num_rounds=num_rounds, runs=runs, seed=seed)
    errors = (x - solution).square().sum(2)
    rate = (1 - gamma * least) ** torch.arange(num_rounds + 1, dtype=torch.float64)
    bound = errors[0, 0] * rate + 2 * gamma * largest / least * noise
    over = (errors / bound).mean(0)
    late = x[:, -num_rounds // 2 :].mean(1)
    nearer = (late - problem.solution).norm(dim=1) - (late - solution).norm(dim=1)
    return Finding(
        source="arXiv 2311.16086",
        verdicts=[
            Verdict("f~ - f, least at 1000 random points", ">", 0.0, _least_gap(problem, curvature, source, seed)),
            estimated(
                "worst mean squared distance from x~ over rate^k plus the noise", "<", 1.0,
                mean((errors / bound)[:, 1 + int(over[1:].argmax())]),
            ),
            estimated("late mean iterate: nearer to x~ than to x*, by", ">", 0.0, mean(nearer)),
        ],
        panels=[
            over_rounds(
                f"{n} workers, {d} coordinates, {runs} runs", "squared distance",
                {
                    "from x~": errors.mean(0),
                    "bound": bound,
                    "from x*": (x - problem.solution).square().sum(2).mean(0),
                },
            )
        ],
    )  # fmt: skip


def _least_gap(problem: Quadratics, curvature: Tensor, source: Tensor, seed: int) -> float:
    rng = generator(seed, "points")
    x = torch.randn(1000, len(source), generator=rng, dtype=torch.float64)
    more, push = curvature - problem.mean_curvature, source - problem.linear.mean(0)
    return float((0.5 * ((x @ more) * x).sum(1) - x @ push).min())
