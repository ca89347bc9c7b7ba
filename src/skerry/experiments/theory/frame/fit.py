"""Estimates with confidence intervals: means, and exponents of power laws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over independent repeats, and half of its 95% interval."""

    value: float
    margin: float


def student_quantile(dof: int, probability: float = 0.975) -> float:
    """Return the quantile of Student's t, by its expansion around the normal one; within .01 from 4 degrees of freedom.

    References:
        Abramowitz and Stegun: Handbook of Mathematical Functions, 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(dof) ** (k + 1) for k, term in enumerate(terms))


def mean(values: Tensor) -> Estimate:
    """Return the mean of independent ``values`` [repeats].

    Raises:
        ValueError: fewer than two repeats.
    """
    repeats = len(values)
    if repeats < 2:
        raise ValueError(f"{repeats} repeats, expected at least 2 for an interval")
    spread = float(values.std()) / math.sqrt(repeats)
    return Estimate(float(values.mean()), student_quantile(repeats - 1) * spread)


def exponent(x: Tensor, y: Tensor) -> Estimate:
    """Return the a of y ~ x^a: the slope for each repeat, then the mean over repeats.

    Args:
        x: [points], positive.
        y: [repeats, points], positive.
    """
    return mean(slope(x, y))


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Return the least-squares slope of log y on log x, for each row of ``y`` [..., points]."""
    log_x = x.log() - x.log().mean()
    slopes: Tensor = (y.log() @ log_x) / log_x.square().sum()
    return slopes


def numbers(values: Sequence[float]) -> Tensor:
    """Return ``values`` as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)
