"""Measures of a round: pure functions of a few numbers.

Dispersion and drift both use the identity, for p vectors v_l with mean v,

    (1/p) sum_l ||v_l - v||^2 = (1/p) sum_l ||v_l||^2 - ||v||^2,

so a process needs the sum of the vectors and of their squared lengths over all workers, but no other worker's vector.

References:
    Liao, Kyrillidis: On the Convergence of Shallow Neural Network Training with Randomly Masked Neurons, 2021,
    arXiv 2112.02668 (the identity).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The measures of one round; None for what was not measured.

    Attributes:
        dispersion: of the subnets' outputs on the probe: their mean squared distance from their mean over their mean
            square, from 0 (all are equal) to 1 (they cancel out); p independent outputs of mean 0 have 1 - 1/p.
        subnet_loss: mean over subnets of the loss on the probe, after local steps and before the exchange.
        full_loss: of the calibrated full model on the probe, after the exchange, in rounds with an evaluation.
        drift: of the parameters that all workers hold, how far apart workers moved over how far their mean moved (root
            mean squares).
        least_trained: for the unit that was trained least, the number of workers' rounds in which it was trained.
        mean_trained: the mean of that number over units.
        rounds_left: after this one.
        label_skew: mean over workers of the total variation distance between a worker's labels and all labels, minus
            the value expected from sampling noise; first round only.
        checked: the kinds of warnings that were judged in the round (``theory_warnings.CHECKS``).
        warnings: those that came, by kind, in the round in which they came first.
    """

    dispersion: float | None = None
    subnet_loss: float | None = None
    full_loss: float | None = None
    drift: float | None = None
    least_trained: int | None = None
    mean_trained: float | None = None
    rounds_left: int = 0
    label_skew: float | None = None
    checked: tuple[str, ...] = ()
    warnings: Mapping[str, str] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """The subnets' mean loss minus that of the full model: what combining them gains."""
        if self.subnet_loss is None or self.full_loss is None:
            return None
        return self.subnet_loss - self.full_loss


MEASURES = ("dispersion", "subnet_loss", "full_loss", "gap", "drift", "least_trained", "mean_trained", "label_skew")
"""The measures that a run writes of each round."""


def variance(square_of_mean: float, mean_of_squares: float) -> float:
    """Return the mean squared distance of vectors from their mean, by the identity above."""
    return max(0.0, mean_of_squares - square_of_mean)  # rounding may make it negative for equal vectors


def dispersion(square_of_mean: float, mean_of_squares: float) -> float | None:
    """Return the variance of outputs over their mean square; None if all outputs are zero."""
    return variance(square_of_mean, mean_of_squares) / mean_of_squares if mean_of_squares > 0 else None


def drift(square_of_mean: float, mean_of_squares: float) -> float | None:
    """Return the distance between moves over the length of the mean move; None if nothing moved.

    For n independent moves of mean 0 it is sqrt(n - 1), since then E||mean||^2 = E||move||^2 / n; for equal moves it is
    0, and for moves that cancel out it is infinite.
    """
    if mean_of_squares == 0:
        return None
    spread = variance(square_of_mean, mean_of_squares)
    return math.sqrt(spread / square_of_mean) if square_of_mean > 0 else math.inf


def label_skew(counts: Tensor, mean: Tensor) -> float:
    """Return how far a worker's labels are from the mean: the total variation distance, minus that of sampling noise.

    (1/2) sum_c |q_c - m_c|, for q = counts / N, minus (1/2) sum_c sqrt(2 m_c (1 - m_c) / (pi N)): the mean of the first
    sum for N labels drawn from m, with each count nearly normal.

    Args:
        counts: how often a worker had each label, (num_classes,).
        mean: the mean of all workers' label frequencies, (num_classes,).
    """
    num = counts.sum().clamp(min=1)
    distance = (counts / num - mean).abs().sum() / 2
    by_chance = (2 * mean * (1 - mean) / (math.pi * num)).sqrt().sum() / 2
    return float(distance - by_chance)
