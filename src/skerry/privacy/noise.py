"""Normal noise: repeatable for tests, else from the operating system's secure generator, which nobody can predict."""

from collections.abc import Callable

import torch
from torch import Tensor

from skerry.data.sample_order import secret_uniform
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
    """Return noise from ``os.urandom``: the normal quantiles of ``secret_uniform``.

    Example:
        >>> secret_noise(torch.Size([2, 3])).shape
        torch.Size([2, 3])
    """
    normal: Tensor = torch.special.ndtri(secret_uniform(shape.numel()))
    return normal.float().view(shape)
