"""The setting of the quadratic theorems: each worker has a quadratic and works on a part of the coordinates.

    f_i(x) = x' L_i x / 2 - x' b_i,   f = (1/n) sum_i f_i,   Lbar = (1/n) sum L_i,   bbar = (1/n) sum b_i,
    x^{k+1} = x^k - gamma g^k,   g^k = (1/n) sum_i C_i grad f_i(C_i x^k) = Bbar x^k - s,
    Bbar = (1/n) sum C_i L_i C_i,   s = (1/n) sum C_i b_i.

A permutation sketch gives worker i an equal part S_i of the coordinates: C_i = n P_i (so that E C_i = I), with P_i the
projection on S_i. It is what ``Disjoint`` deals, with coordinates as units. The scaled sketch is C_i = sqrt(n)
([L_i]_{S_i S_i})^(-1/2) on S_i. Expectations over the dealing are exact: all dealings are enumerated.

Source: Shulgin, Richtarik: Towards a Better Theoretical Understanding of Independent Subnetwork Training, 2023,
arXiv 2306.16484 (sketches of one coordinate there; parts of any equal size here, which is the same algebra).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from skerry.experiments.theory.frame.verdict import Panel, over_rounds
from skerry.merge.aggregate import aggregate_
from skerry.partitions.assignment import Assignment
from skerry.partitions.disjoint import Disjoint
from skerry.plan.dims import Axis, DealtDim
from skerry.plan.table import Plan
from skerry.randomness import generator
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import take


@dataclass(frozen=True, eq=False)
class Quadratics:
    """The n workers' L [n, d, d], symmetric positive definite, and b [n, d]."""

    curvature: Tensor
    linear: Tensor

    @property
    def mean_curvature(self) -> Tensor:
        """Lbar [d, d]."""
        return self.curvature.mean(0)

    @property
    def solution(self) -> Tensor:
        """x* = Lbar^-1 bbar [d]."""
        solution: Tensor = torch.linalg.solve(self.mean_curvature, self.linear.mean(0))
        return solution

    def gaps(self, x: Tensor) -> Tensor:
        """Return f(x) - f(x*) = ||x - x*||^2_Lbar / 2 for each x of [..., d]."""
        e = x - self.solution
        return 0.5 * ((e @ self.mean_curvature) * e).sum(-1)


Sketch = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``sketch(L_SS, b_S, n)``: the worker's part of Bbar and of s."""


def permutation(curvature: Tensor, linear: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """C = n P: (1/n) C L C = n L_SS and (1/n) C b = b_S."""
    return n * curvature, linear


def scaled_permutation(curvature: Tensor, linear: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """C = sqrt(n) L_SS^(-1/2) on S: (1/n) C L C = I and (1/n) C b = n^(-1/2) L_SS^(-1/2) b_S."""
    return torch.eye(len(linear), dtype=linear.dtype), power(curvature, -0.5) @ linear / n**0.5


def random_quadratics(seed: int, n: int, d: int, *, linear: float) -> Quadratics:
    """Return workers with different, well conditioned curvature; ``linear`` is the size of their b_i."""
    rng = generator(seed, "quadratics", n, d)
    a = torch.randn(n, d, d, generator=rng, dtype=torch.float64) / d**0.5
    b = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return Quadratics(a @ a.mT / 2 + torch.eye(d, dtype=torch.float64), linear * b)


def plan_of(d: int) -> Plan:
    """Return the plan whose units are the d coordinates of one tensor ``x``."""
    dealt = DealtDim(torch.arange(d, dtype=torch.int32), "out")
    return Plan((Axis("coordinates", d, "coordinates"),), {"x": (dealt,)}, {"x": torch.Size([d])})


def round_(x: Tensor, problem: Quadratics, assignment: Assignment, sketch: Sketch, step: float) -> None:
    """Let each worker take one step on its coordinates of x [d], and aggregate in place."""
    plan, n = plan_of(len(x)), assignment.num_workers
    pieces = []
    for worker in range(n):
        cut = Cuts(plan, assignment.units(worker)).of("x")
        assert cut is not None
        part = take(x, cut)
        b_part, s_part = sketch(take(problem.curvature[worker], cut * 2), take(problem.linear[worker], cut), n)
        pieces.append({"x": part - step * (b_part @ part - s_part)})
    aggregate_({"x": x}, plan, assignment, pieces)


def simulate(
    problem: Quadratics, sketch: Sketch, start: Tensor, *, step: float, num_rounds: int, runs: int, seed: int
) -> Tensor:
    """Return x^k [runs, num_rounds + 1, d]; each run draws its own dealings."""
    axes, n = plan_of(len(start)).axes, len(problem.linear)
    found = start.new_empty(runs, num_rounds + 1, len(start))
    for run in range(runs):
        x, partition = start.clone(), Disjoint(n, seed + run)
        for k in range(num_rounds + 1):
            found[run, k] = x
            round_(x, problem, partition.assign(axes, k), sketch, step)
    return found


def gap_panel(problem: Quadratics, x: Tensor, bound: Tensor) -> Panel:
    """Return the plot of f - f* in the mean over runs x [runs, rounds + 1, d], beside its bound [rounds + 1]."""
    n, d = problem.linear.shape
    title = f"{n} workers, {d} coordinates, {len(x)} runs"
    return over_rounds(title, "f - f*", {"measured": problem.gaps(x).mean(0), "bound": bound})


def dealings(n: int, d: int) -> Iterator[Assignment]:
    """Yield every way to deal d coordinates to n workers in equal parts; ``Disjoint`` draws from them uniformly.

    Raises:
        ValueError: n does not divide d.
    """
    if d % n:
        raise ValueError(f"{d} coordinates for {n} workers, expected a multiple of n, as parts must be equal")
    owners = [worker for worker in range(n) for _ in range(d // n)]
    for dealt in sorted(set(permutations(owners))):
        yield Assignment(torch.tensor(dealt) == torch.arange(n)[:, None])


@dataclass(frozen=True, eq=False)
class Moments:
    """Exact expectations over the dealing, with h = Bbar x* - s, the step at the solution.

    Attributes:
        mean: E Bbar.
        symmetric: Wbar = E[Lbar Bbar + Bbar Lbar] / 2.
        theta: the least with E[Bbar Lbar Bbar] <= theta Wbar; infinite if Wbar is not positive definite.
        rate: lambda_min(Lbar^(-1/2) Wbar Lbar^(-1/2)).
        shift: E h [d].
        noise: E ||h||^2_Lbar.
        source: E s [d].
        spread: E ||s - E s||^2.
    """

    mean: Tensor
    symmetric: Tensor
    theta: float
    rate: float
    shift: Tensor
    noise: float
    source: Tensor
    spread: float


def moments(problem: Quadratics, sketch: Sketch) -> Moments:
    """Return the moments, averaged over all dealings."""
    (b, s), lbar = over_dealings(problem, sketch), problem.mean_curvature
    symmetric = ((lbar @ b + b @ lbar) / 2).mean(0)
    h = b @ problem.solution - s
    root = power(lbar, -0.5)
    positive = float(torch.linalg.eigvalsh(symmetric)[0]) > 0
    inverse = power(symmetric, -0.5) if positive else symmetric
    theta = float(torch.linalg.eigvalsh(inverse @ (b @ lbar @ b).mean(0) @ inverse)[-1])
    return Moments(
        mean=b.mean(0),
        symmetric=symmetric,
        theta=theta if positive else float("inf"),
        rate=float(torch.linalg.eigvalsh(root @ symmetric @ root)[0]),
        shift=h.mean(0),
        noise=float(((h @ lbar) * h).sum(1).mean()),
        source=s.mean(0),
        spread=float((s - s.mean(0)).square().sum(1).mean()),
    )


def over_dealings(problem: Quadratics, sketch: Sketch) -> tuple[Tensor, Tensor]:
    """Return Bbar [dealings, d, d] and s [dealings, d] of every dealing."""
    n, d = problem.linear.shape
    bs, ss = [], []
    for assignment in dealings(n, d):
        b_bar, s = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        for worker in range(n):
            units = assignment.units(worker)
            own = problem.curvature[worker][units][:, units], problem.linear[worker][units]
            b_bar[units[:, None], units], s[units] = sketch(*own, n)
        bs.append(b_bar)
        ss.append(s)
    return torch.stack(bs), torch.stack(ss)


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Return ``matrix`` (symmetric, positive definite) to a real power."""
    values, vectors = torch.linalg.eigh(matrix)
    result: Tensor = (vectors * values**exponent) @ vectors.T
    return result
