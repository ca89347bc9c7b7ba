"""A model that visits the workers in turn is held back less by their different data than an average of local models.

In a round one model takes K steps of size eta on f_1, ..., f_M, in an order drawn anew each round. With the effective
step eta~ = M K eta, L and mu of the f_i, and zeta^2 = (1/M) sum ||grad f_i(x*)||^2, for eta~ <= 1/(6L) or so,

    E ||x^{r+1} - x*||^2 <= (1 - mu eta~ / 2) E ||x^r - x*||^2 + O(L eta~^3 zeta^2 / M).

For the average of models that start each round together, with eta~ = K eta, the last term has no 1/M. These are upper
bounds; what is checked is what they suggest: at equal eta~ the sequence ends nearer to x*, and the nearer the more
workers there are; at equal eta, shorter rounds (smaller K, so smaller eta~) end nearer.

A fixed order is not covered: then the same worker always comes last. Nets of ``relay`` visit workers in a fixed order.

Source: Li, Lyu: Convergence Analysis of Sequential Federated Learning on Heterogeneous Data, NeurIPS 2023, arXiv
2311.03154 (rate, and the order of its terms, without its constants); the tight bounds of arXiv 2405.01142 have the same
terms. Gradients are exact here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import exponent, mean, numbers
from skerry.experiments.theory.frame.quadratic import Quadratics, random_quadratics
from skerry.experiments.theory.frame.verdict import Finding, Panel, Verdict, estimated, over_rounds
from skerry.randomness import generator

HIGHEST = 0.05
"""A floor above this fraction of the first error is none."""
WELL_ABOVE = 10.0
"""Near its floor the error goes up and down, while the theorem's has no constant to compare with."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    d: int
    runs: int
    num_rounds: int
    linear: float
    fixed_order: bool
    most_workers: int

    def problem(self, seed: int, m: int) -> tuple[Quadratics, float]:
        """Return the first m of all workers, and the largest curvature of all."""
        every = random_quadratics(seed, self.most_workers, self.d, linear=self.linear)
        largest = float(torch.linalg.eigvalsh(every.curvature).max())
        return Quadratics(every.curvature[:m], every.linear[:m]), largest


def check(
    *,
    seed: int = 0,
    repeats: int = 6,
    workers: Sequence[int] = (2, 4, 8, 16),
    locals_: Sequence[int] = (2, 4, 8),
    d: int = 4,
    runs: int = 10,
    num_rounds: int = 300,
    step: float = 1.0,
    linear: float = 1.0,
    fixed_order: bool = False,
) -> Finding:
    """Measure squared distances from x*, of the sequence and of the average.

    Args:
        workers: the values of M; the first of them is used where M does not change.
        locals_: the values of K, at one eta; the last of them is used where K does not change.
        step: eta~ in units of 1 / (6L), with L of the most workers; a value far above 1 breaks the assumption.
        linear: the size of b_i; at 0 all workers have the same minimum, and nothing holds back.
        fixed_order: the order of the first round in all rounds, which breaks the assumption.
    """
    shape = {"d": d, "runs": runs, "num_rounds": num_rounds, "most_workers": max(workers)}
    sizes = _Sizes(**shape, linear=linear, fixed_order=fixed_order)
    most, few, seeds = locals_[-1], workers[0], range(seed, seed + repeats)
    sequence = [_errors(seeds, m, most, step, sizes) for m in workers]
    average = [_errors(seeds, m, most, step, sizes, parallel=True) for m in workers]
    ratios = (_floors(sequence) / _floors(average)).log()
    long = {k: replace(sizes, num_rounds=num_rounds * most // k) for k in locals_}
    shorter = _floors([_errors(seeds, few, k, step * k / most, long[k]) for k in locals_])
    rate = max(_over_rate(one, few, step, own, sizes) for one, own in zip(seeds, sequence[0], strict=True))
    curves = {f"sequence, M = {m}": e for m, e in zip(workers, sequence, strict=True)}
    curves[f"average, M = {workers[-1]}"] = average[-1]
    return Finding(
        source="arXiv 2311.03154, theorem 1",
        verdicts=[
            Verdict(f"M = {few}: worst squared distance over rate^k plus the measured floor", "<=", 1.0, rate),
            *(
                estimated(f"M = {m}: log of its floor over the average's, at one effective step", "<", 0.0, mean(own))
                for m, own in zip(workers, ratios.T, strict=True)
            ),
            estimated(
                "floor falls with the workers M, exponent", "<", 0.0,
                exponent(numbers(workers), _floors(sequence)), exponent=True,
            ),
            estimated(
                "floor grows with local steps K, exponent", ">", 0.0,
                exponent(numbers(locals_), shorter), exponent=True,
            ),
        ],
        panels=[
            over_rounds(
                f"{d} coordinates, K = {most}", "squared distance from x*",
                {label: errors.mean(0) for label, errors in curves.items()},
            ),
            Panel(
                f"M = {few}, one step size", "local steps K", "floor",
                {"sequence": (locals_, shorter.mean(0))}, log="xy",
            ),
        ],
    )  # fmt: skip


def _errors(seeds: Sequence[int], m: int, k: int, step: float, sizes: _Sizes, *, parallel: bool = False) -> Tensor:
    """Return the mean of ||x^r - x*||^2 over runs, for each seed's problem [problems, rounds + 1]."""
    problems = [sizes.problem(seed, m) for seed in seeds]
    solution = torch.stack([problem.solution for problem, _ in problems])[:, None]
    moves = [_visit(own, k, step / (6 * largest) / (k if parallel else m * k)) for own, largest in problems]
    shrink, push = (torch.stack(each) for each in zip(*moves, strict=True))
    x = (solution + 1).expand(-1, sizes.runs, -1)
    rng, orders, which = generator(seeds[0], "visits", m, k), torch.empty(0), torch.arange(len(problems))[:, None]
    errors = [(x - solution).square().sum(2).mean(1)]
    for number in range(sizes.num_rounds):
        if parallel:
            x = x @ shrink.mean(1).mT + push.mean(1)[:, None]
        else:
            if number == 0 or not sizes.fixed_order:
                orders = torch.rand(*x.shape[:2], m, generator=rng).argsort(2)
            for turn in range(m):
                visited = which, orders[..., turn]
                x = (shrink[visited] @ x[..., None])[..., 0] + push[visited]
        errors.append((x - solution).square().sum(2).mean(1))
    return torch.stack(errors, 1)


def _visit(problem: Quadratics, k: int, eta: float) -> tuple[Tensor, Tensor]:
    """Return A_i [M, d, d] and c_i [M, d]: K local steps of worker i turn x into A_i x + c_i."""
    one = torch.eye(problem.linear.shape[1], dtype=torch.float64)
    shrink = torch.linalg.matrix_power(one - eta * problem.curvature, k)  # of the distance from where f_i is least
    own = torch.linalg.solve(problem.curvature, problem.linear)
    return shrink, own - (shrink @ own[..., None])[..., 0]


def _floors(points: Sequence[Tensor]) -> Tensor:
    """Return the mean of the last third of the rounds [problems, points]."""
    return torch.stack([errors[:, -(errors.shape[1] // 3) :].mean(1) for errors in points], 1)


def _over_rate(seed: int, m: int, step: float, errors: Tensor, sizes: _Sizes) -> float:
    """Return the largest error over rate^k times the first one plus the floor, of rounds well above the floor."""
    (problem, largest), floor = sizes.problem(seed, m), float(_floors([errors[None]]))
    if not floor <= HIGHEST * float(errors[0]):
        return math.inf
    least = float(torch.linalg.eigvalsh(problem.curvature).min())
    rate = 1 - least * step / (6 * largest) / 2
    bound = errors[0] * rate ** torch.arange(len(errors), dtype=torch.float64) + floor
    counted = (errors / bound)[1:][errors[1:] > WELL_ABOVE * floor]
    return float(counted.max()) if len(counted) else math.inf
