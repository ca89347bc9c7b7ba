"""How much pretraining until greedy forward selection finds a good subnetwork, and how that grows with the data.

    f(x) = (1/N) sum_i v_i(x),   v_i(x) = b_i tanh(<a_i, x>),   b_i = +-c fixed;   l(z) = (1/m) sum_x (z(x) - y(x))^2.

After t steps of gradient descent on l(f), greedy forward selection picks k units, also repeatedly, each so that the
loss of the mean of those picked, u_k, is least. As l is convex, and the best unit is no worse than a random one,

    l(u_k) <= (1/k) l(u_1) + ((k - 1)/k) l(f_t) + V (1/2 + ... + 1/k) / k,   V = the variance of v_i over the units,

at every t: the found subnetwork follows the dense one down, up to O(log k / k). That is checked.

How many steps it takes until l(u_k) is below a threshold is only looked at, with orthogonal inputs and a rate that is
proportional to m. There every sample trains by itself, so by construction the dense net's steps do not depend on m. The
subnetwork's grow: k units picked from an untrained net nearly fit a few labels, and not many, so it starts ahead of the
dense net, the less the larger m is. That is no test of the paper's claim, a growth with log m. On real images the
smallest eigenvalue of the kernel over the largest falls with m, and the dense net needs more steps, too.

Source: Wolfe, Liao, Wang, Kim, Kyrillidis: How Much Pre-training Is Enough to Discover a Good Subnetwork?, 2021, arXiv
2108.00259. The inequality is derived here; it is that of Ye et al., ICML 2020, arXiv 2003.01794, with its constants.

Not checked: the paper's log m, constants and stochastic gradients; its statement was at hand only as a summary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.loading import load
from skerry.experiments.theory.frame.fit import Estimate, mean
from skerry.experiments.theory.frame.verdict import Finding, Panel, Verdict, estimated
from skerry.randomness import generator

Data = Callable[[int, int], tuple[Tensor, Tensor]]
"""A function of the number of samples and a seed that returns inputs (m, d) of length 1 and targets (m,) of +-1."""

Select = Callable[[Tensor], int]
"""A function of the losses that each unit would lead to, which returns the unit that is picked."""


@dataclass(frozen=True)
class Pretraining:
    """Losses after ``steps``: of the dense net and of the subnetwork found in it; the worst ratio to the bound."""

    steps: Sequence[int]
    dense: Sequence[float]
    found: Sequence[float]
    over_bound: float

    def threshold(self, loss: float, *, dense: bool = False) -> float:
        """Return the steps until the loss of the subnetwork, or dense net, is at most ``loss``; NaN if it never is."""
        last = (0, math.inf)
        for t, each in zip(self.steps, self.dense if dense else self.found, strict=True):
            if each <= loss:
                part = math.log(last[1] / loss) / math.log(last[1] / each) if t else 0.0
                return last[0] + part * (t - last[0])
            last = (t, each)
        return math.nan


def least(losses: Tensor) -> int:
    """Pick greedily."""
    return int(losses.argmin())


def selected(v: Tensor, y: Tensor, num: int, select: Select) -> tuple[list[float], Tensor]:
    """Return the losses of u_1 .. u_num, picked one by one from units with outputs ``v`` (m, N), and the picks."""
    total, losses, picks = torch.zeros_like(y), [], []
    for k in range(1, num + 1):
        each = ((total[:, None] + v) / k - y[:, None]).square().mean(0)
        picks.append(select(each))
        total = total + v[:, picks[-1]]
        losses.append(float(each[picks[-1]]))
    return losses, torch.tensor(picks)


def bound(losses: Sequence[float], dense: float, variance: float) -> list[float]:
    """Return the bound on each of ``losses``, l(u_1) .. l(u_k)."""
    harmonic = [sum(1 / j for j in range(2, k + 1)) for k in range(1, len(losses) + 1)]
    return [(losses[0] + (k - 1) * dense + variance * h) / k for k, h in enumerate(harmonic, start=1)]


def pretrain(
    x: Tensor, y: Tensor, *, units: int, keep: int, steps: Sequence[int], step: float, seed: int, select: Select
) -> Pretraining:
    """Train a net of ``units`` on all samples, and look for ``keep`` units after each of ``steps``.

    Args:
        step: in units of m / lambda_max(x x'), so that it does not depend on how large the kernel is.
    """
    a = torch.randn(units, x.shape[1], generator=generator(seed, "units"), dtype=x.dtype)
    b = 2.0 * (1 - 2 * (torch.arange(units) % 2)).to(x)
    rate = step * len(x) / float(torch.linalg.matrix_norm(x, 2)) ** 2
    dense, found, worst = [], [], 0.0
    for t in range(steps[-1] + 1):
        h = torch.tanh(x @ a.T)
        v = h * b
        error = v.mean(1) - y
        if t in steps:
            losses, _ = selected(v, y, keep, select)
            dense.append(float(error.square().mean()))
            found.append(losses[-1])
            variance = float(v.var(1, correction=0).mean())
            tops = bound(losses, dense[-1], variance)
            worst = max(
                worst, *(each / top for each, top in zip(losses[1:], tops[1:], strict=True))
            )  # the first are equal
        a -= rate * (2 / len(x)) * (error[:, None] * (1 - h.square()) * b).T @ x
    return Pretraining(steps, dense, found, worst)


def orthogonal(samples: int, seed: int, *, dims: int) -> tuple[Tensor, Tensor]:
    """Return orthogonal inputs and random signs; with fewer dims than samples the inputs are random unit vectors."""
    rng = generator(seed, "inputs", samples)
    x = torch.eye(samples, dims, dtype=torch.float64)
    if dims < samples:
        x = F.normalize(torch.randn(samples, dims, generator=rng, dtype=torch.float64))
    return x, 1.0 - 2.0 * torch.randint(2, (samples,), generator=rng).double()


def images(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return Fashion-MNIST at 7 x 7 pixels, centred; the sign says whether the class is one of the first five.

    Raises:
        DataError: it is not on this machine.
    """
    stored = load("fashion-mnist")
    chosen = torch.randperm(4096, generator=generator(seed, "images"))[:samples]
    pixels = torch.as_tensor(stored.x_train[:4096]).double().view(-1, 1, 28, 28)
    x = F.avg_pool2d(pixels, 4).flatten(1)
    return F.normalize(x - x.mean(0))[chosen], torch.where(
        torch.as_tensor(stored.y_train[:4096])[chosen] < 5, 1.0, -1.0
    ).double()


def check(
    *,
    seed: int = 0,
    repeats: int = 6,
    sizes: Sequence[int] = (32, 64, 128, 256),
    dims: int = 256,
    units: int = 200,
    keep: int = 20,
    most_steps: int = 130,
    step: float = 0.03,
    loss: float = 0.1,
    select: Select = least,
    real: Data | None = images,
) -> Finding:
    """Measure thresholds over ``repeats`` data sets of each of ``sizes``.

    Args:
        sizes: numbers of samples, each twice the one before.
        dims: of the inputs; fewer than samples break the assumption.
        step: of training on orthogonal inputs.
        loss: the threshold for the subnetwork of ``keep`` units, and for the dense net.
        select: how units are picked; if not greedily, the inequality does not hold.
        real: data that are looked at, too, if they are there; what they show is a note, no claim.
    """
    grid = sorted({*range(9), *(round(8 * 1.25**k) for k in range(30) if 8 * 1.25**k <= most_steps)})

    def runs(data: Data, sizes: Sequence[int], step: float) -> list[list[Pretraining]]:
        settings: dict[str, Any] = {"units": units, "keep": keep, "steps": grid, "step": step, "select": select}
        return [[pretrain(*data(m, s), seed=s, **settings) for m in sizes] for s in range(seed, seed + repeats)]

    made = runs(partial(orthogonal, dims=dims), sizes, step)
    start, end = (torch.tensor([[r.found[k] for r in row] for row in made]).mean() for k in (0, -1))
    own, dense = thresholds(made, loss).mean(0), thresholds(made, loss, dense=True).mean(0)
    spread = dense.max() / dense.min()
    verdicts = [
        Verdict("subnetwork's loss over the bound, worst", "<=", 1.0, max(r.over_bound for row in made for r in row)),
        Verdict("its loss after pretraining over that before", "<", 0.5, float(end / start)),
        estimated(
            "steps until it is good grow, each doubling of m, by", ">", 0.0, mean(thresholds(made, loss).diff().mean(1))
        ),
        estimated("and that growth grows, each doubling, by", "<=", 0.0, bend(made, loss)),
        Verdict("dense net's steps, most over least (no growth, by construction)", "<", 1.1, float(spread)),
    ]
    panels = [curves(f"orthogonal inputs, {keep} of {units} units", made[0], sizes)]
    notes = [steps_of("orthogonal inputs", sizes, loss, own, dense)]
    by_size = {f"orthogonal inputs, loss {loss:g}": (sizes, own), "dense net, the same": (sizes, dense)}
    if real is not None:
        try:
            seen = runs(real, REAL_SIZES, REAL_STEP)
        except DataError:
            notes.append("Fashion-MNIST is not on this machine: not looked at")
        else:
            found = bend(seen, REAL_LOSS)
            own, dense = (thresholds(seen, REAL_LOSS, dense=each).mean(0) for each in (False, True))
            notes.append(
                f"{steps_of('Fashion-MNIST', REAL_SIZES, REAL_LOSS, own, dense)}; the subnetwork's growth grows by "
                f"{found.value:.2g} ± {found.margin:.2g} steps each doubling"
            )
            panels.append(curves("Fashion-MNIST", seen[0], REAL_SIZES))
            by_size[f"Fashion-MNIST, loss {REAL_LOSS:g}"] = (REAL_SIZES, own)
    panels.append(Panel("how much pretraining is enough", "samples m", "steps", by_size, log="xy"))
    return Finding(source="arXiv 2108.00259", verdicts=verdicts, panels=panels, notes=notes)


REAL_SIZES, REAL_LOSS, REAL_STEP = (64, 128, 256, 512), 0.3, 0.6


def thresholds(runs: Sequence[Sequence[Pretraining]], loss: float, *, dense: bool = False) -> Tensor:
    """Return the steps until the loss of the subnetwork, or dense net, is at most ``loss``, (repeats, sizes)."""
    return torch.tensor([[r.threshold(loss, dense=dense) for r in row] for row in runs]).double()


def steps_of(data: str, sizes: Sequence[int], loss: float, own: Tensor, dense: Tensor) -> str:
    """Return the steps until the loss is ``loss``, of the subnetwork and of the dense net, in words."""
    own_steps, dense_steps = (", ".join(f"{each:.1f}" for each in steps) for steps in (own, dense))
    return (
        f"{data}, {', '.join(map(str, sizes))} samples: {own_steps} steps until the subnetwork's loss is {loss:g}, "
        f"{dense_steps} until the dense net's is"
    )


def bend(runs: Sequence[Sequence[Pretraining]], loss: float) -> Estimate:
    """Return the mean second difference of the thresholds over sizes: 0 for a + b log m, above 0 for a power of m."""
    return mean(thresholds(runs, loss).diff(n=2).mean(1))


def curves(title: str, runs: Sequence[Pretraining], sizes: Sequence[int]) -> Panel:
    """Return the plot of the found subnetworks' losses against steps."""
    by_size = {f"m = {m}": ([t + 1 for t in r.steps], r.found) for m, r in zip(sizes, runs, strict=True)}
    return Panel(title, "steps of pretraining + 1", "loss of the subnetwork", by_size, log="xy")
