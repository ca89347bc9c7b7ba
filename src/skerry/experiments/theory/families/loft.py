"""LoFT: a one-hidden-layer CNN, filters drawn by Bernoulli masks, stays near gradient descent and converges to a floor.

    f(x) = (m P)^(-1/2) sum_r sum_j a_rj relu(<w_r, patch_j(x)>),   m filters, P positions, a = +-1 fixed.

The paper's theorem bounds the distance from the trajectory of gradient descent on the whole network; we do not have its
statement. The network is that of theorem 3 of arXiv 2112.02668 with patches as inputs, and the masks are the same, so
the form of that theorem is checked:

    E ||y - u_k||^2 <= (1 - eta theta tau lambda_0 / 4)^k ||y - u_0||^2 + floor,   lambda_0 = lambda_min(xi K_infinity),

K_infinity is the mean of the patches' kernels over positions; the floor falls with the workers p. The distance from
gradient descent, the mean over k of ||u_k - u_k^GD||^2, is 0 at xi = 1 and grows with 1 - xi.

Source: Wang, Dun, Liao, Jermaine, Kyrillidis: LoFT: Finding Lottery Tickets through Filter-wise Training, 2022,
arXiv 2210.16169; the rate after arXiv 2112.02668, theorem 3.

Not checked: the theorem's own constants and its exponents in time and width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.experiments.theory.frame.fit import exponent, numbers
from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.rates import at_rate, error_panel, floors, settled
from skerry.experiments.theory.frame.shallow import limit_kernel, signs
from skerry.experiments.theory.frame.simulate import Problem, Trace, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Panel, Verdict, estimated
from skerry.plan.rules import In, Out
from skerry.plan.table import Plan
from skerry.randomness import generator

FILTER, POSITIONS = 6, 4


class CNN(nn.Module):
    """One convolution, with a stride of its size so that patches do not overlap, and fixed output weights."""

    def __init__(self, filters: int, rng: torch.Generator) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, filters, FILTER, stride=FILTER, bias=False, dtype=torch.float64)
        self.out = nn.Linear(filters * POSITIONS, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(filters, 1, FILTER, generator=rng, dtype=torch.float64))
            self.out.weight.copy_(signs(filters * POSITIONS, rng) / math.sqrt(filters * POSITIONS))
        self.out.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1, FILTER * POSITIONS) to (n,)."""
        result: Tensor = self.out(F.relu(self.conv(x)).flatten(1))
        return result.squeeze(-1)


def images(*, seed: int, filters: int, samples: int = 8) -> Problem:
    """Return a CNN with random inputs, whose patches are unit vectors, and random targets."""
    rng = generator(seed, "images")
    patches = F.normalize(torch.randn(samples, POSITIONS, FILTER, generator=rng, dtype=torch.float64), dim=2)
    y = 2 * torch.rand(samples, generator=rng, dtype=torch.float64) - 1
    model = CNN(filters, generator(seed, "weights", filters))
    plan = Plan.from_rules(model, {"conv": Out("filters"), "out": In("filters")})
    return Problem(model, plan, patches.flatten(1)[:, None], y)


def patch_kernel(x: Tensor) -> Tensor:
    """Return K_infinity, the mean over positions of the patches' limit kernels."""
    patches = x.view(len(x), POSITIONS, FILTER)
    return torch.stack([limit_kernel(patches[:, j]) for j in range(POSITIONS)]).mean(0)


def check(
    *,
    seed: int = 0,
    repeats: int = 6,
    filters: int = 200,
    keep: float = 0.5,
    workers: Sequence[int] = (1, 2, 4),
    drops: Sequence[float] = (0.02, 0.1, 0.5),
    local: int = 3,
    num_rounds: int = 24,
    step: float = 0.5,
) -> Finding:
    """Measure rates, floors and distances over ``repeats`` problems.

    Args:
        keep: xi; at 1 there is no floor that could fall.
        step: eta in units of 1 / lambda_max; a value above 2 breaks the assumption.
    """

    def traces(p: int, xi: float) -> tuple[list[Trace], list[float]]:
        found, rates = [], []
        theta = 1 - (1 - xi) ** p
        for s in range(seed, seed + repeats):
            problem = images(seed=s, filters=filters)
            low, high = extremes(patch_kernel(problem.x))
            eta = step / high  # the same for all xi, so that all compare with the same gradient descent
            found.append(run(problem, Bernoulli(p, xi, s), step=eta, local=local, num_rounds=num_rounds))
            rates.append(1 - eta * theta * local * xi * low / 4)
        return found, rates

    full = traces(1, 1.0)
    by_workers = {p: traces(p, keep) for p in workers}
    in_p = exponent(numbers(workers), floors([by_workers[p][0] for p in workers]))
    some = workers[len(workers) // 2]
    by_drop = [by_workers[some][0] if 1 - drop == keep else traces(some, 1 - drop)[0] for drop in drops]
    away = torch.stack([_away(found, full[0]) for found in by_drop], 1)
    none = _away(traces(some, 1.0)[0], full[0])
    in_drop = exponent(numbers(drops), away)
    return Finding(
        source="arXiv 2210.16169; rate of arXiv 2112.02668, theorem 3",
        verdicts=[
            at_rate("xi = 1", *full, floor=False),
            *(at_rate(f"p = {p}", *by_workers[p]) for p in workers),
            estimated("floor falls with p, exponent", "<", 0.0, in_p),
            settled([found for found, _ in by_workers.values()]),
            Verdict(f"xi = 1, p = {some}: squared distance from gradient descent", "<=", 1e-20, float(none.max())),
            estimated("squared distance from gradient descent grows with 1 - xi, exponent", ">", 0.0, in_drop),
        ],
        panels=[
            error_panel(
                f"{filters} filters, keep {keep:g}, {local} local steps",
                {f"p = {p}": found for p, (found, _) in by_workers.items()},
            ),
            Panel(
                f"distance from gradient descent, p = {some}",
                "1 - xi",
                "mean over rounds of ||u - u_GD||^2",
                {f"exponent {in_drop.value:.2f}": (drops, away.mean(0))},
                log="xy",
            ),
        ],
        notes=["the paper's own constants are not known to us: what is checked is the form of theorem 3 of 2112.02668"],
    )


def _away(traces: Sequence[Trace], whole: Sequence[Trace]) -> Tensor:
    """Return, for each problem, the mean over rounds of ||u_k - u_k^GD||^2."""
    return torch.stack([(a.outputs - b.outputs).square().sum(1).mean() for a, b in zip(traces, whole, strict=True)])
