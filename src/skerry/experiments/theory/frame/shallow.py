"""The network of the mask theorems: one hidden layer; only the weights into it are trained.

    f(x) = m^(-1/2) sum_r a_r relu(<w_r, x>),   w_r ~ N(0, kappa^2 I), a_r = +-1 fixed, ||x_i|| = 1.

Liao, Kyrillidis: On the Convergence of Shallow Neural Network Training with Randomly Masked Neurons, 2022,
arXiv 2112.02668, section 3. Units are the m hidden neurons.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.experiments.theory.frame.simulate import Problem
from skerry.plan.rules import In, Out
from skerry.plan.table import Plan
from skerry.randomness import generator


class Shallow(nn.Module):
    """One hidden layer of ``width`` units on inputs (n, d), outputs (n,)."""

    def __init__(self, d: int, width: int, *, kappa: float, rng: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(d, width, bias=False, dtype=torch.float64)
        self.out = nn.Linear(width, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(kappa * torch.randn(width, d, generator=rng, dtype=torch.float64))
            self.out.weight.copy_(signs(width, rng) / math.sqrt(width))
        self.out.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, d) to (n,)."""
        result: Tensor = self.out(F.relu(self.hidden(x)))
        return result.squeeze(-1)


def signs(num: int, rng: torch.Generator) -> Tensor:
    """Return ``num`` random signs, float64."""
    return 2.0 * torch.randint(2, (num,), generator=rng).double() - 1.0


def random_data(rng: torch.Generator, samples: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return random unit vectors (samples, inputs) and targets (samples,) uniform in -1 .. 1."""
    x = F.normalize(torch.randn(samples, inputs, generator=rng, dtype=torch.float64))
    return x, 2 * torch.rand(samples, generator=rng, dtype=torch.float64) - 1


def shallow(*, seed: int, width: int, samples: int = 10, inputs: int = 20, kappa: float = 1.0) -> Problem:
    """Return a net of ``width`` units with random data, which depend on the seed only and not on the width."""
    x, y = random_data(generator(seed, "data"), samples, inputs)
    model = Shallow(inputs, width, kappa=kappa, rng=generator(seed, "weights", width))
    return Problem(model, Plan.from_rules(model, {"hidden": Out("hidden"), "out": In("hidden")}), x, y)


def limit_kernel(x: Tensor) -> Tensor:
    """Return the kernel of infinite width, E_w [<x_i, x_j> 1{<w, x_i> >= 0, <w, x_j> >= 0}], from angles of inputs."""
    directions = F.normalize(x)
    angle = torch.arccos((directions @ directions.T).clamp(-1, 1))
    return (x @ x.T) * (math.pi - angle) / (2 * math.pi)
