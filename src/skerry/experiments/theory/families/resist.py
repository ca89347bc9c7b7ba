"""ResIST: a deep residual network whose blocks are dealt out converges linearly.

    x_0 = x,   x_h = x_{h-1} + (1 / (H sqrt(w))) softplus(W_h x_{h-1}),   f(x) = <a, x_H>,   h = 1 .. H,

W_h trained, a = +-1 fixed, w the width; each worker has H/S of the blocks, the others are the identity; l local steps:

    L(k) <= (1 - eta l lambda / 2)^k L(0),   eta = O(lambda H^2 / (n^2 l^2 S)),   width Omega(poly(n, 1/lambda)).

We take for lambda the smallest eigenvalue of the last block's kernel at the start, divided by S because a block is on
one of S workers. This is the weakest reading, since a worker's kernel is the sum over its blocks. L is the loss of the
network with branches scaled by 1/S at inference, as in the paper; without that scale L has a floor.

Source: Dun, Wolfe, Jermaine, Kyrillidis: ResIST: Layer-Wise Decomposition of ResNets for Distributed Training, 2022,
arXiv 2107.00961, its convergence theorem (from a summary).

Checked: the rate, that one worker has no floor, and that the scale at inference matters. The theorem as summarised has
no floor for S > 1 either. A network of finite width has one with our steps: rate^k L(0) holds until it reaches that
floor and not after (230 rounds show it). The notes give the round, the floor, and how it falls with depth. Not checked:
the polynomial in the width, and whether there is a floor with the paper's own step, which is far below our half of
1 / lambda_max.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.experiments.theory.frame.fit import exponent, numbers
from skerry.experiments.theory.frame.rates import at_rate, error_panel, floors
from skerry.experiments.theory.frame.shallow import random_data, signs
from skerry.experiments.theory.frame.simulate import Problem, Trace, extremes, kernel, run
from skerry.experiments.theory.frame.verdict import Finding, Panel, Verdict
from skerry.model.tensors import named_tensors
from skerry.partitions.disjoint import Disjoint
from skerry.plan.dims import Axis
from skerry.plan.table import Plan
from skerry.randomness import generator


class Block(nn.Module):
    """x + gain * softplus(W x). ``gain`` is a fixed parameter, so that calibration can scale it."""

    def __init__(self, width: int, gain: float, rng: torch.Generator) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, bias=False, dtype=torch.float64)
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64), requires_grad=False)
        with torch.no_grad():
            self.dense.weight.copy_(torch.randn(width, width, generator=rng, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, width) to (n, width)."""
        return x + self.gain * F.softplus(self.dense(x))


class Residual(nn.Module):
    """``depth`` blocks and fixed output weights."""

    def __init__(self, depth: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, 1 / (depth * math.sqrt(width)), rng) for _ in range(depth)))
        self.out = nn.Linear(width, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.out.weight.copy_(signs(width, rng))
        self.out.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, width) to (n,)."""
        result: Tensor = self.out(self.blocks(x))
        return result.squeeze(-1)


def residual(*, seed: int, depth: int, width: int, samples: int = 6) -> Problem:
    """Return a residual network with random unit inputs and targets; the units of its plan are the blocks."""
    x, y = random_data(generator(seed, "residual"), samples, width)
    model = Residual(depth, width, generator(seed, "weights", depth, width))
    plan = Plan(
        axes=(Axis("blocks", depth, "blocks"),),
        dims={},
        shapes={name: tensor.shape for name, tensor in named_tensors(model).items()},
        blocks={f"blocks.{h}": h for h in range(depth)},
        scaled={f"blocks.{h}.gain": h for h in range(depth)},
    )
    return Problem(model, plan, x, y)


def check(
    *,
    seed: int = 0,
    repeats: int = 4,
    depths: Sequence[int] = (4, 8, 16),
    width: int = 40,
    workers: Sequence[int] = (2, 4),
    local: int = 5,
    num_rounds: int = 20,
    step: float = 0.5,
    scaled: bool = True,
) -> Finding:
    """Measure rates and floors over ``repeats`` networks.

    Args:
        depths: the middle one for the rates, all for the floor.
        step: eta in units of 1 / lambda_max; a value above 2 breaks the assumption.
        scaled: whether branches are scaled by 1/S at inference.
    """

    def traces(depth: int, s_workers: int) -> tuple[list[Trace], list[float]]:
        found, rates = [], []
        for s in range(seed, seed + repeats):
            problem = residual(seed=s, depth=depth, width=width)
            low, high = last_block(problem)[0] / s_workers, extremes(kernel(problem.model, problem.x))[1] / s_workers
            eta, share = step / high, None if scaled else torch.ones(depth, dtype=torch.float64)
            partition = Disjoint(s_workers, s)
            found.append(run(problem, partition, step=eta, local=local, num_rounds=num_rounds, share=share))
            rates.append(1 - eta * local * low / 2)
        return found, rates

    middle, most = depths[len(depths) // 2], workers[-1]
    alone, by_workers = traces(middle, 1), {s: traces(middle, s) for s in workers}
    by_depth = [by_workers[most][0] if depth == middle else traces(depth, most)[0] for depth in depths]
    in_depth = exponent(numbers(depths), floors(by_depth)) if len(depths) > 1 else None
    over_targets = {s: _over_targets(by_workers[s][0], seed, middle, width) for s in workers}
    fell = "" if in_depth is None else f"exponent {in_depth.value:.2f} ± {in_depth.margin:.2f}"
    return Finding(
        source="arXiv 2107.00961, convergence theorem",
        verdicts=[
            at_rate("S = 1", *alone, floor=False),
            *(at_rate(f"S = {s}, {num_rounds} rounds", *by_workers[s], floor=False) for s in workers),
            *(
                Verdict(f"S = {s}: floor over ||y||^2, far below predicting 0", "<", 0.1, over_targets[s])
                for s in workers
            ),
        ],
        panels=[
            error_panel(
                f"{middle} blocks of width {width}, {local} local steps",
                {f"S = {s}": found for s, (found, _) in {1: alone, **by_workers}.items()},
            ),
            Panel(
                f"floor, S = {most}", "blocks", "squared error", {fell: (depths, floors(by_depth).mean(0))}, log="xy"
            ),
        ],
        notes=[
            "the summarised theorem has no floor for S > 1, so it fails after enough rounds; measured floors: "
            + ", ".join(_fails(s, *by_workers[s]) for s in workers)
            + f"; against the number of blocks, S = {most}: {fell}"
        ],
    )


def last_block(problem: Problem) -> tuple[float, float]:
    """Return the extreme eigenvalues of the last block's kernel."""
    assert isinstance(problem.model, Residual)
    last = problem.model.get_parameter(f"blocks.{len(problem.model.blocks) - 1}.dense.weight")
    return extremes(kernel(problem.model, problem.x, [last]))


def _fails(s: int, traces: Sequence[Trace], rates: Sequence[float]) -> str:
    """Describe the floor, and the round from which rate^k L(0) is below it."""
    shares = numbers([t.floor() / float(t.errors[0]) for t in traces])
    rounds = shares.log() / numbers(rates).log()  # NaN if steps were too large
    floor = sum(t.floor() for t in traces) / len(traces)
    return f"S = {s} {floor:.2g} (rate^k L(0) is below it from round {float(rounds.min()):.0f})"


def _over_targets(traces: Sequence[Trace], seed: int, depth: int, width: int) -> float:
    targets = [residual(seed=seed + k, depth=depth, width=width).y.square().sum() for k in range(len(traces))]
    return sum(trace.floor() / float(y) for trace, y in zip(traces, targets, strict=True)) / len(traces)
