"""Normal noise: repeatable for tests, else from the operating system's secure generator, which nobody can predict."""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from skerry.randomness import generator

Noise = Callable[[torch.Size], Tensor]
"""Returns independent numbers with mean 0 and variance 1 of the given shape, float32."""


def noise_of(*key: int | str) -> Noise:
    """Return noise that is a function of ``key``; without a key, secret noise."""
    if not key:
        return secret_noise
    rng = generator(*key)
    return lambda shape: torch.randn(shape, generator=rng)


def secret_noise(shape: torch.Size) -> Tensor:
    """Return noise from ``os.urandom``: the normal quantiles of uniform numbers with 53 bits.

    Example:
        >>> secret_noise(torch.Size([2, 3])).shape
        torch.Size([2, 3])
    """
    if not shape.numel():
        return torch.empty(shape)
    bits = torch.frombuffer(bytearray(os.urandom(8 * shape.numel())), dtype=torch.int64)
    uniform = ((bits & (2**53 - 1)).double() + 0.5) / 2**53
    normal: Tensor = torch.special.ndtri(uniform)
    return normal.float().view(shape)
