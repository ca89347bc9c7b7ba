"""What theory says about a run: measures of a round, and warnings with a remedy. Pure functions of a few numbers.

Both dispersion and drift are the aggregation identity: for p vectors v_l with mean v,

    (1/p) sum_l ||v_l - v||^2 = (1/p) sum_l ||v_l||^2 - ||v||^2,

so a process needs the sum of the vectors and of their squared lengths, never anybody else's vector.

References:
    Liao, Kyrillidis: On the Convergence of Shallow Neural Network Training with Randomly Masked Neurons, 2021,
    arXiv 2112.02668 (the identity; theorem 3: its rate has the chance theta that a unit is trained in a round).
    Shulgin, Richtarik: Towards a Better Theoretical Understanding of Independent Subnetwork Training, 2023,
    arXiv 2306.16484 (the bias that unlike data leaves).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

# Where each of these comes from: docs/your-run.md.
DRIFT_OVER_CHANCE = 2.0
"""Workers' moves are this many times as far apart as moves that have nothing to do with each other would be."""
DRIFT_ROUNDS = 5
"""Rounds in which workers were looked at before the drift is judged."""
MOST_DRIFT_ROUNDS = 50
"""And those it is judged by: where the rate does not fall, short moves of a run that has arrived add up without end."""
SHARED_OF_SUBNET = 0.1
"""The part of a worker's weights that must be shared before their drift is judged: a few biases follow their subnet."""
SKEW_OF_MOST = 0.5
"""The part of the label skew that workers without a common label would have."""
LOSS_OVER_SUBNETS = 2.0
"""The full model's loss is this many times that of its subnets."""
GAP_OF_FIRST = 0.1
"""And above by this part of the subnets' loss in their first round: of a loss near zero any other is a multiple."""
NEVER_TRAINED = 0.01
"""The fraction of units that is left to the end without any training."""


class TheoryWarning(UserWarning):
    """Theory says that this run goes wrong; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The measures of one round; None for what was not measured.

    Attributes:
        dispersion: of the subnets' outputs on the probe: ``apart`` over their mean square, from 0 (all say the same)
            to 1 (they cancel out); p independent outputs of mean 0 have 1 - 1/p.
        subnet_loss: mean over subnets of the loss on the probe, after local steps and before the exchange.
        full_loss: of the calibrated full model on the probe, after the exchange, where it was evaluated.
        drift: how far apart workers moved what they all hold, over how far their mean moved (root mean squares).
        least_trained: how often the unit was trained that was trained least, in workers' rounds.
        mean_trained: how often a unit was trained, in the mean.
        rounds_left: after this one.
        label_skew: mean total variation distance between a worker's labels and all labels, less what sampling
            gives by chance; of the first round.
        warnings: what theory warns of, by kind, in the round in which it is first seen.
    """

    dispersion: float | None = None
    subnet_loss: float | None = None
    full_loss: float | None = None
    drift: float | None = None
    least_trained: int | None = None
    mean_trained: float | None = None
    rounds_left: int = 0
    label_skew: float | None = None
    warnings: Mapping[str, str] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """The subnets' mean loss less that of the full model: what putting them together gains."""
        if self.subnet_loss is None or self.full_loss is None:
            return None
        return self.subnet_loss - self.full_loss


MEASURES = ("dispersion", "subnet_loss", "full_loss", "gap", "drift", "least_trained", "mean_trained", "label_skew")
"""What is written of a round."""


def apart(square_of_mean: float, mean_of_squares: float) -> float:
    """Return the mean squared distance of vectors from their mean, by the identity above."""
    return max(0.0, mean_of_squares - square_of_mean)  # rounding may bring equal vectors below


def dispersion(square_of_mean: float, mean_of_squares: float) -> float | None:
    """Return what part of the outputs' mean square is disagreement; None where all outputs are zero."""
    return apart(square_of_mean, mean_of_squares) / mean_of_squares if mean_of_squares > 0 else None


def drift(square_of_mean: float, mean_of_squares: float) -> float | None:
    """Return the distance between moves over that of the mean move; None where nothing moved.

    Moves of n workers that are independent and of mean 0 have sqrt(n - 1), since then E||mean||^2 = E||move||^2 / n;
    equal moves have 0; workers that each go their own way around a mean that stays have infinity.
    """
    if mean_of_squares == 0:
        return None
    spread = apart(square_of_mean, mean_of_squares)
    return math.sqrt(spread / square_of_mean) if square_of_mean > 0 else math.inf


def label_skew(counts: Tensor, mean: Tensor) -> float:
    """Return the total variation distance between a worker's labels and the mean, less what chance gives.

    (1/2) sum_c |q_c - m_c|, for q = counts / N, less (1/2) sum_c sqrt(2 m_c (1 - m_c) / (pi N)): the mean of that sum
    for N labels drawn from m, each count being nearly normal.

    Args:
        counts: how often a worker had each label, (classes,).
        mean: the mean of all workers' frequencies, (classes,).
    """
    num = counts.sum().clamp(min=1)
    distance = (counts / num - mean).abs().sum() / 2
    by_chance = (2 * mean * (1 - mean) / (math.pi * num)).sqrt().sum() / 2
    return float(distance - by_chance)


def warn_of_drift(square_of_mean: float, mean_of_squares: float, num_rounds: int, num_workers: int) -> str | None:
    """Warn of workers that go apart instead of forward.

    Rounds are added up before they are compared, so that the short moves at the end of a schedule, which are apart in
    every run that has arrived, count for little.

    Args:
        square_of_mean: of the workers' mean move, the sum over rounds.
        mean_of_squares: the mean over workers of the squared length of their moves, the sum over the same rounds.
        num_rounds: the number of these rounds.
        num_workers: the number of workers.
    """
    if num_workers < 2 or num_rounds < DRIFT_ROUNDS:
        return None
    found, chance = drift(square_of_mean, mean_of_squares), math.sqrt(num_workers - 1)
    if found is None or found <= DRIFT_OVER_CHANCE * chance:
        return None
    return (
        f"drift: what all workers hold went {found:.1f} times as far apart as its mean moved (independent moves of "
        f"{num_workers} workers: {chance:.1f}), so exchanges undo most of the local steps; use a lower learning "
        "rate (schedule=cosine) or fewer local_steps, or give workers more alike data"
    )


def warn_of_skew(skew: float | None, num_workers: int) -> str | None:
    """Warn of workers with unlike labels."""
    most = 1 - 1 / num_workers
    if skew is None or num_workers < 2 or skew <= SKEW_OF_MOST * most:
        return None
    return (
        f"label skew: a worker's labels are {skew:.2f} away from all labels (at most {most:.2f}); training apart on "
        "unlike data leaves a bias that no learning rate and no number of rounds removes (arXiv 2306.16484); mix the "
        "data (split iid), let workers share some of it, add their label priors to their logits "
        "(skerry.training.log_priors, prior_adjusted=true), or see what other methods make of it (skerry compare)"
    )


def warn_of_coverage(never: float, rounds_left: int) -> str | None:
    """Warn of ``never``, the fraction of units that the rounds left do not reach."""
    if never <= NEVER_TRAINED:
        return None
    return (
        f"coverage: {never:.0%} of the units will have had no training at the end ({rounds_left} rounds left); use "
        "more rounds, larger fractions, more workers, a larger step (fedrolex), or a partition that covers all (ist)"
    )


def warn_of_scale(losses: Sequence[tuple[float, float]], first: float) -> str | None:
    """Warn of a full model that is far worse than its parts.

    Where it is the mean of the subnets and the loss is convex in the output, it cannot be worse at all (Jensen; for
    squared errors the gap is the dispersion, by the identity).

    Args:
        losses: (of the subnets in the mean, of the full model) on the probe, of the rounds so far that have both.
        first: of the subnets after the first round that was looked at.
    """
    if not losses:
        return None
    subnets, full = (sum(each) / len(losses) for each in zip(*losses, strict=True))
    if not (0 < LOSS_OVER_SUBNETS * subnets < full and full - subnets > GAP_OF_FIRST * first):
        return None
    return (
        f"scale: the full model's loss on the probe was {full:.3g}, the subnets' {subnets:.3g}; its dealt units are "
        "not scaled as the subnets need it: see what partition.share returns, or keep some axes whole (plan.without)"
    )
