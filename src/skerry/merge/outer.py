"""The outer optimizer: it takes the mean of the workers' moves in a round as a gradient.

With theta the weights that all workers start the round with, theta_w those of worker w at its end, m the outer momentum
and Delta = mean_w (theta - theta_w), SGD with Nesterov momentum is

    m' = mu m + Delta,    theta' = theta - eta (Delta + mu m').

No traffic of its own is needed: theta' is linear in Delta, so each worker hands over the result for its own move,
theta - eta ((1 + mu)(theta - theta_w) + mu^2 m), and the mean of these is theta'. From theta' every worker computes
Delta, and so m'.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_START, _MOMENTUM = "::outer::start::", "::outer::momentum::"  # no parameter's name begins so


@dataclass(frozen=True)
class Outer:
    """SGD with Nesterov momentum on the mean of the workers' moves.

    Args:
        lr: eta, above 0.
        momentum: mu, from 0 to below 1.

    Raises:
        ValueError: a value out of range.

    References:
        Douillard et al.: DiLoCo: Distributed Low-Communication Training of Language Models, 2023, arXiv 2311.08105,
        algorithm 1 (lr .7, momentum .9).
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"outer lr={self.lr}: expected a positive number")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"outer momentum={self.momentum}: expected a number from 0 to below 1")

    @torch.no_grad()
    def begin(self, model: nn.Module, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a worker keeps in the round that begins: theta and m.

        Args:
            model: with the weights theta.
            kept: what it kept in the round before; empty in the first round.
        """
        mu, now = self.momentum, {}
        for name, theta in _trained(model).items():
            if f"{_START}{name}" in kept:
                before, momentum = kept[f"{_START}{name}"], kept[f"{_MOMENTUM}{name}"]
                move = ((before - theta) / self.lr - mu**2 * momentum) / (1 + mu)
                now[f"{_MOMENTUM}{name}"] = mu * momentum + move
            else:
                now[f"{_MOMENTUM}{name}"] = torch.zeros_like(theta)
            now[f"{_START}{name}"] = theta.detach().clone()
        return now

    @torch.no_grad()
    def end_(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Replace a worker's weights at the end of its local steps, in place, by what it hands over."""
        mu = self.momentum
        for name, theta in _trained(model).items():
            before, momentum = kept[f"{_START}{name}"], kept[f"{_MOMENTUM}{name}"]
            theta.copy_(before - self.lr * ((1 + mu) * (before - theta) + mu**2 * momentum))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
