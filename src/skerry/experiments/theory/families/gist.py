"""GIST: a two-layer graph network, its hidden dim dealt out, converges up to a floor that one worker does not have.

    yhat = m_h^(-1/2) A relu(A X W) a,   A the normalised adjacency with self loops, W trained, a = +-1 fixed.

With m subnets, zeta local steps, gamma = (1 - 1/m)^(1/3), lambda_0 = lambda_min(A H_infinity(AX) A / m):

    E ||y - yhat(t)||^2 <= (gamma + (1 - gamma)(1 - eta lambda_0 / 2)^zeta)^t ||y - yhat(0)||^2 + O(...),

where the floor O(...) is 0 at m = 1 and grows with kappa^2, the scale of the first weights.

Source: Wolfe, Yang, Chowdhury, Dun, Bayer, Segarra, Kyrillidis: GIST: Distributed Training for Large-Scale Graph
Convolutional Networks, 2021, arXiv 2102.10424, its convergence theorem (after the team's summary).

Can be checked: the rate, the absence of a floor at m = 1, the direction and exponent in kappa. Cannot be checked with
what we have of the paper: the size of the floor. lambda_0 holds about the fourth power of the smallest eigenvalue of A
(two convolutions, in a kernel), so the graph is a weakly joined one; eta is half of 1 / lambda_max.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.experiments.theory.frame.fit import exponent, numbers
from skerry.experiments.theory.frame.rates import at_rate, error_panel, floors, settled
from skerry.experiments.theory.frame.shallow import limit_kernel, signs
from skerry.experiments.theory.frame.simulate import Problem, Trace, extremes, run
from skerry.experiments.theory.frame.verdict import Curve, Finding, Panel, estimated
from skerry.partitions.disjoint import Disjoint
from skerry.plan.rules import In, Out
from skerry.plan.table import Plan
from skerry.randomness import generator

EDGE = 0.1
"""The weight of an edge of the graph, a self loop's being 1."""


class GCN(nn.Module):
    """Two graph convolutions with one output; inputs are the features (nodes, d) of a fixed graph."""

    adjacency: Tensor

    def __init__(self, adjacency: Tensor, d: int, width: int, *, kappa: float, rng: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.hidden = nn.Linear(d, width, bias=False, dtype=torch.float64)
        self.out = nn.Linear(width, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(kappa * torch.randn(width, d, generator=rng, dtype=torch.float64))
            self.out.weight.copy_(signs(width, rng) / math.sqrt(width))
        self.out.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (nodes, d) to (nodes,)."""
        result: Tensor = self.adjacency @ self.out(F.relu(self.hidden(self.adjacency @ x)))
        return result.squeeze(-1)


def rings(num: int) -> Tensor:
    """The normalised adjacency of ``num`` rings of four nodes with self loops of weight 1 and edges of weight EDGE."""
    one = torch.eye(4, dtype=torch.float64)
    ring = (one + EDGE * (one.roll(1, 0) + one.roll(-1, 0))) / (1 + 2 * EDGE)
    return torch.kron(torch.eye(num, dtype=torch.float64), ring)


def graph(*, seed: int, width: int, kappa: float = 1.0, num_rings: int = 2, d: int = 20) -> Problem:
    """Random unit features and targets on rings."""
    rng, adjacency = generator(seed, "graph"), rings(num_rings)
    nodes = len(adjacency)
    x = F.normalize(torch.randn(nodes, d, generator=rng, dtype=torch.float64))
    y = 2 * torch.rand(nodes, generator=rng, dtype=torch.float64) - 1
    model = GCN(adjacency, d, width, kappa=kappa, rng=generator(seed, "weights", width))
    return Problem(model, Plan.from_rules(model, {"hidden": Out("hidden"), "out": In("hidden")}), x, y)


def check(
    *,
    seed: int = 0,
    repeats: int = 5,
    width: int = 400,
    subnets: Sequence[int] = (2, 4),
    kappas: Sequence[float] = (1.0, 4.0, 16.0),
    local: int = 6,
    num_rounds: int = 20,
    step: float = 0.5,
) -> Finding:
    """Measure rates and floors over ``repeats`` graphs.

    Args:
        width: of the hidden dim; too small it breaks the assumption.
        step: eta in units of 1 / lambda_max; above 2 it breaks the assumption.
    """

    def traces(m: int, kappa: float = 1.0) -> tuple[list[Trace], list[float]]:
        found, rates = [], []
        gamma = (1 - 1 / m) ** (1 / 3)
        for s in range(seed, seed + repeats):
            problem = graph(seed=s, width=width, kappa=kappa)
            a = problem.model.get_buffer("adjacency")
            low, high = (value / m for value in extremes(a @ limit_kernel(a @ problem.x) @ a))
            eta = step / high
            found.append(run(problem, Disjoint(m, s), step=eta, local=local, num_rounds=num_rounds))
            rates.append(gamma + (1 - gamma) * (1 - eta * low / 2) ** local)
        return found, rates

    alone, by_subnets = traces(1), {m: traces(m) for m in subnets}
    most = subnets[-1]
    by_kappa = [by_subnets[most][0] if kappa == 1.0 else traces(most, kappa)[0] for kappa in kappas]
    in_kappa = exponent(numbers(kappas), floors(by_kappa))
    return Finding(
        source="arXiv 2102.10424, convergence theorem",
        verdicts=[
            at_rate("m = 1", *alone, floor=False),
            *(at_rate(f"m = {m}", *by_subnets[m]) for m in subnets),
            estimated("floor grows with kappa, exponent", ">", 0.0, in_kappa),
            estimated("floor grows at most as kappa^2, exponent", "<=", 2.0, in_kappa, exponent=True),
            settled(by_kappa),
        ],
        panels=[
            error_panel(
                f"{num_rounds} rounds of {local} steps, width {width}",
                {f"m = {m}": found for m, (found, _) in {1: alone, **by_subnets}.items()},
            ),
            Panel(
                title=f"floor, m = {most}",
                xlabel="kappa",
                ylabel="squared error",
                curves=[Curve(f"exponent {in_kappa.value:.2f}", kappas, floors(by_kappa).mean(0).tolist())],
                log="xy",
            ),
        ],
        notes=["the floor's O(...) is not known to us: its size and its other dependences are not checked"],
    )
