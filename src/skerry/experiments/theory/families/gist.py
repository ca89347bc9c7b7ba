"""GIST: a two-layer graph network, its hidden dim dealt out, converges up to a floor that one worker does not have.

    yhat = m_h^(-1/2) A relu(A X W) a,   A the normalised adjacency with self loops, W trained, a = +-1 fixed.

With m subnets, zeta local steps, gamma = (1 - 1/m)^(1/3), lambda_0 = lambda_min(A H_infinity(AX) A / m):

    E ||y - yhat(t)||^2 <= (gamma + (1 - gamma)(1 - eta lambda_0 / 2)^zeta)^t ||y - yhat(0)||^2 + O(...),

where the floor O(...) is 0 at m = 1 and grows with kappa^2; kappa is the scale of the initial weights.

Source: Wolfe, Yang, Chowdhury, Dun, Bayer, Segarra, Kyrillidis: GIST: Distributed Training for Large-Scale Graph
Convolutional Networks, 2021, arXiv 2102.10424, its convergence theorem (from a summary).

Checked: the rate, that there is no floor at m = 1, the direction and exponent in kappa. Not checked, for lack of the
constants: the size of the floor. lambda_0 contains about the fourth power of the smallest eigenvalue of A (two
convolutions, in a kernel), so the graph is weakly connected; eta is half of 1 / lambda_max.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import exponent, numbers
from skerry.experiments.theory.frame.rates import at_rate, error_panel, floors, settled
from skerry.experiments.theory.frame.shallow import Shallow, limit_kernel, random_data
from skerry.experiments.theory.frame.simulate import Problem, Trace, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Panel, estimated
from skerry.partitions.disjoint import Disjoint
from skerry.plan.rules import In, Out
from skerry.plan.table import Plan
from skerry.randomness import generator

EDGE = 0.1
"""Weight of an edge of the graph; self loops have weight 1."""


class GCN(Shallow):
    """Two graph convolutions with one output; inputs are the features (nodes, d) of a fixed graph."""

    adjacency: Tensor

    def __init__(self, adjacency: Tensor, d: int, width: int, *, kappa: float, rng: torch.Generator) -> None:
        super().__init__(d, width, kappa=kappa, rng=rng)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor) -> Tensor:
        """Map (nodes, d) to (nodes,)."""
        return (self.adjacency @ super().forward(self.adjacency @ x)[:, None]).squeeze(-1)


def rings(num: int) -> Tensor:
    """Return the normalised adjacency of ``num`` rings of four nodes: self loops of weight 1, edges of weight EDGE."""
    one = torch.eye(4, dtype=torch.float64)
    ring = (one + EDGE * (one.roll(1, 0) + one.roll(-1, 0))) / (1 + 2 * EDGE)
    return torch.kron(torch.eye(num, dtype=torch.float64), ring)


def graph(*, seed: int, width: int, kappa: float = 1.0, num_rings: int = 2, d: int = 20) -> Problem:
    """Return a GCN on rings with random unit features and targets."""
    adjacency = rings(num_rings)
    x, y = random_data(generator(seed, "graph"), len(adjacency), d)
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
        width: of the hidden dim; too small a value breaks the assumption.
        step: eta in units of 1 / lambda_max; a value above 2 breaks the assumption.
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
                f"floor, m = {most}",
                "kappa",
                "squared error",
                {f"exponent {in_kappa.value:.2f}": (kappas, floors(by_kappa).mean(0))},
                log="xy",
            ),
        ],
        notes=["the floor's O(...) is not known to us: its size and what else it depends on are not checked"],
    )
