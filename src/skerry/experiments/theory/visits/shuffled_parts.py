"""Parts cut once have less noise where every worker has each of them once in n rounds; to permute them is no gain.

The d coordinates are cut into n parts in advance. In a round each worker i has a part p_i, and with C_i = n P_{p_i}

    x^{k+1} = x^k - gamma grad h(x^k),   h(x) = (1/n) sum_i f_i(C_i x),   f~ = E h, least at x~.

*Drawn*: each p_i is drawn by itself, so a part may have several workers or none. *Permuted*: p is a permutation, drawn
anew each round. *In turn*: p_i = i + k mod n, as ``relay`` deals (``skerry.partitions.Cyclic``). A worker has each part
equally often in all three, so f~ and x~ are the same. As in ``quadratics/masked_objective.py``, with L = max
lambda_max(Bbar), mu~ the least eigenvalue of f~'s curvature and gamma <= 1/L, drawn and permuted parts satisfy

    E ||x^k - x~||^2 <= (1 - gamma mu~)^k ||x^0 - x~||^2 + (2 gamma L / mu~) (f~(x~) - E inf h).

At x~ the terms y_i of a part have mean 0 over workers. Drawn, the part's step has variance (1/n)(1 - 1/n) sum_i y_i^2.
Permuted, it has (1/n) sum_i y_i^2: n/(n-1) times as much. In turn, n rounds add up to a mean step, as in shuffled SGD.

Source: Deng, Qiao, Mahdavi: On the Convergence and Stability of Distributed Sub-model Training, arXiv 2511.06132: its
idea, after shuffled SGD. Its theorems were not at hand: the bound and the factor are derived here.
"""

import math
from collections.abc import Iterator
from itertools import permutations, product
from typing import Literal

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import mean
from skerry.experiments.theory.frame.quadratic import Quadratics, plan_of, random_quadratics
from skerry.experiments.theory.frame.verdict import Finding, Verdict, estimated, over_rounds
from skerry.partitions.cyclic import Cyclic
from skerry.randomness import generator

Order = Literal["drawn", "permuted", "in turn"]


class _Parts:
    """What each worker adds to a round with each part: B [n, n, d, d] and s [n, n, d], by worker and part."""

    def __init__(self, problem: Quadratics) -> None:
        self.n, d = problem.linear.shape
        axes, partition = plan_of(d).axes, Cyclic(self.n)
        first = partition.assign(axes, 0).held.to(torch.float64)  # the cut [parts, d]
        both = first[:, :, None] * first[:, None, :]
        self.curvature = self.n * problem.curvature[:, None] * both
        self.linear = problem.linear[:, None] * first
        turns = [partition.assign(axes, k).held.to(torch.float64) for k in range(self.n)]
        self.turns = torch.stack([(held @ first.T).argmax(1) for held in turns])  # [rounds, workers]

    def of(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Return Bbar [..., d, d] and s [..., d] where worker i has ``parts[..., i]``."""
        workers = torch.arange(self.n)
        return self.curvature[workers, parts].sum(-3), self.linear[workers, parts].sum(-2)

    def drawn(self, order: Order, runs: int, seed: int) -> Iterator[Tensor]:
        """Yield each round's parts [runs, n]."""
        rng, k = generator(seed, "parts", order), 0
        while True:
            if order == "drawn":
                yield torch.randint(self.n, (runs, self.n), generator=rng)
            elif order == "permuted":
                yield torch.rand(runs, self.n, generator=rng).argsort(1)
            else:
                yield self.turns[k % self.n].expand(runs, -1)
            k += 1


def check(
    *,
    seed: int = 0,
    repeats: int = 6,
    n: int = 4,
    d: int = 8,
    runs: int = 20,
    num_rounds: int = 300,
    step: float = 0.5,
    linear: float = 1.0,
    turns: Order = "in turn",
) -> Finding:
    """Measure squared distances from x~ for the three orders.

    Args:
        step: gamma in units of 1 / L; a value far above 1 breaks the assumption.
        linear: the size of b_i; at 0 nothing has a floor.
        turns: what is done in the place of turns; ``drawn`` has nothing to gain.
    """
    orders: tuple[Order, ...] = ("drawn", "permuted", turns)
    found = [
        [_errors(seed + r, n, d, runs, num_rounds, step, linear, order) for r in range(repeats)] for order in orders
    ]
    errors = torch.stack([torch.stack([own for own, _ in each]) for each in found])  # [orders, repeats, rounds + 1]
    bounds = torch.stack([torch.stack([bound for _, bound in each]) for each in found])
    floors = errors[..., -num_rounds // 3 :].mean(2)
    permuted, more = mean((floors[1] / floors[0]).log()), math.log(n / (n - 1))
    worst = (errors / bounds)[..., 1:].mean(1).amax(1)
    return Finding(
        source="arXiv 2511.06132",
        verdicts=[
            Verdict("drawn: worst squared distance over rate^k plus the noise", "<=", 1.0, float(worst[0])),
            Verdict("permuted: worst squared distance over rate^k plus the noise", "<=", 1.0, float(worst[1])),
            Verdict(
                f"permuted over drawn, log of the floor, difference from log n/(n-1) = {more:.3g}", "<=", 0.0,
                abs(permuted.value - more), permuted.margin,
            ),
            estimated("in turn over drawn, log of the floor", "<", 0.0, mean((floors[2] / floors[0]).log())),
        ],
        panels=[
            over_rounds(
                f"{n} workers, {d} coordinates", "squared distance from x~",
                {order: own.mean(0) for order, own in zip(("drawn", "permuted", "in turn"), errors, strict=True)},
            )
        ],
    )  # fmt: skip


def _errors(
    seed: int, n: int, d: int, runs: int, num_rounds: int, step: float, linear: float, order: Order
) -> tuple[Tensor, Tensor]:
    """Return the mean of ||x^k - x~||^2 over runs, and its bound, each [rounds + 1]."""
    parts = _Parts(random_quadratics(seed, n, d, linear=linear))
    dealt = list(product(range(n), repeat=n)) if order == "drawn" else list(permutations(range(n)))
    every_b, every_s = parts.of(torch.tensor(dealt))
    curvature, source = every_b.mean(0), every_s.mean(0)
    solution = torch.linalg.solve(curvature, source)
    largest, least = float(torch.linalg.eigvalsh(every_b).max()), float(torch.linalg.eigvalsh(curvature)[0])
    lowest = -0.5 * (every_s * (torch.linalg.pinv(every_b, hermitian=True) @ every_s[..., None])[..., 0]).sum(1)
    common, _ = parts.of(torch.arange(n)[:, None].expand(n, n))  # all have one part: the largest Bbar of any order
    gamma = step / float(torch.linalg.eigvalsh(common).max())
    noise = float(-0.5 * source @ solution - lowest.mean())
    x = (solution + 2).expand(runs, -1).clone()
    errors = [(x - solution).square().sum(1).mean()]
    for own, _ in zip(parts.drawn(order, runs, seed), range(num_rounds), strict=False):
        b, s = parts.of(own)
        x = x - gamma * ((b @ x[..., None])[..., 0] - s)
        errors.append((x - solution).square().sum(1).mean())
    measured = torch.stack(errors)
    rate = (1 - gamma * least) ** torch.arange(num_rounds + 1, dtype=torch.float64)
    return measured, measured[0] * rate + 2 * gamma * largest / least * noise
