"""Warnings that follow from theory: from the measures of a run to a sentence with a remedy, as pure functions.

Where the limits come from: docs/your-run.md.

References:
    Liao, Kyrillidis: On the Convergence of Shallow Neural Network Training with Randomly Masked Neurons, 2021,
    arXiv 2112.02668 (coverage: the rate of theorem 3 has the probability theta that a unit is trained in a round).
    Shulgin, Richtarik: Towards a Better Theoretical Understanding of Independent Subnetwork Training, 2023,
    arXiv 2306.16484 (label skew: the bias that heterogeneous data leaves).
"""

import math
from collections.abc import Sequence

from skerry.training.diagnosis.measures import drift

DRIFT_OVER_CHANCE = 2.0
"""The limit of drift, as a multiple of what independent moves have."""
MIN_DRIFT_ROUNDS = 5
"""Rounds with measures before drift is judged."""
MAX_DRIFT_ROUNDS = 50
"""Rounds by which it is judged: at a constant rate, the short moves of a converged run would add up without end."""
MIN_SHARED_FRACTION = 0.1
"""Drift is judged only if this part of a worker's weights is shared: a few biases follow each its own subnet."""
SKEW_OF_MOST = 0.5
"""The limit of label skew, as a fraction of that of workers without a common label."""
LOSS_OVER_SUBNETS = 2.0
"""The limit of the full model's loss, as a multiple of the subnets' loss."""
GAP_OF_FIRST = 0.1
"""It must also exceed the subnets' loss by this fraction of their first loss: near zero any loss is a multiple."""
UNTRAINED_PAIRS = 0.1
"""The limit of the fraction of weights between dealt units that are never trained."""
NEVER_TRAINED = 0.01
"""The limit of the fraction of units that are never trained."""


class TheoryWarning(UserWarning):
    """Theory predicts that this run goes wrong; the message says what to change."""


def drift_warning(square_of_mean: float, mean_of_squares: float, num_rounds: int, num_workers: int) -> str | None:
    """Return a warning if workers move apart instead of forward.

    Rounds are summed before they are compared, so that the short moves at the end of a schedule, which are apart in
    every converged run, count little.

    Args:
        square_of_mean: squared length of the workers' mean move, summed over rounds.
        mean_of_squares: mean over workers of the squared length of their moves, summed over the same rounds.
        num_rounds: the number of these rounds.
        num_workers: the number of workers.
    """
    if num_workers < 2 or num_rounds < MIN_DRIFT_ROUNDS:
        return None
    found, chance = drift(square_of_mean, mean_of_squares), math.sqrt(num_workers - 1)
    if found is None or found <= DRIFT_OVER_CHANCE * chance:
        return None
    return (
        f"drift: parameters on all workers moved {found:.1f} times as far apart as their mean moved (independent moves "
        f"of {num_workers} workers: {chance:.1f}), so exchanges undo most of the local steps; use a lower learning "
        "rate (schedule=cosine) or fewer local_steps, or give workers more similar data"
    )


def label_skew_warning(skew: float | None, num_workers: int) -> str | None:
    """Return a warning if workers have different labels; ``skew`` is ``Diagnosis.label_skew``."""
    most = 1 - 1 / num_workers
    if skew is None or num_workers < 2 or skew <= SKEW_OF_MOST * most:
        return None
    return (
        f"label skew: the labels of a worker differ from all labels by {skew:.2f} (total variation, at most "
        f"{most:.2f}); local training on such data leaves a bias that no learning rate and no number of rounds removes "
        "(arXiv 2306.16484); if their logits do not have their label priors yet, add them "
        "(skerry.training.log_priors, prior_adjusted=true); else mix the data (split iid), let workers share some of "
        "it, or try other methods (skerry compare)"
    )


def coverage_warning(never: float, rounds_left: int) -> str | None:
    """Return a warning if too many units stay untrained: ``never`` is their fraction at the end of the run."""
    if never <= NEVER_TRAINED:
        return None
    return (
        f"coverage: {never:.0%} of the units will have had no training at the end ({rounds_left} rounds left); use "
        "more rounds, larger fractions, more workers, a larger step (fedrolex), or a partition that covers all (ist)"
    )


def few_rounds_warning(num_rounds: int, num_workers: int, rounds_per_cycle: int) -> str | None:
    """Return a warning if nets go from worker to worker, but not to all: ``rounds_per_cycle`` takes them to all."""
    if num_rounds >= rounds_per_cycle:
        return None
    return (
        f"few rounds: a net visits only {num_rounds} of {num_workers} workers and never sees the data of the others; "
        f"do at least {rounds_per_cycle} rounds, of fewer local steps each"
    )


def untrained_warning(fraction: float, where: str) -> str | None:
    """Return a warning if too many weights between dealt units stay as they were initialized.

    Args:
        fraction: of the weights between two dealt units, those whose units no worker holds together in any round.
        where: between which axes most of them are.
    """
    if fraction <= UNTRAINED_PAIRS:
        return None
    return (
        f"untrained weights: {fraction:.0%} of the weights between dealt units are never trained, because no worker "
        f"ever holds both units (most of them {where}); use more rounds of fewer local steps, fewer workers, a larger "
        "core or reshuffle, or relay or ensemble, which have no such weights"
    )


def scale_warning(losses: Sequence[tuple[float, float]], first: float) -> str | None:
    """Return a warning if the full model is far worse than its subnets.

    If its output is the mean of theirs and the loss is convex in the output, it cannot be worse at all (Jensen; for
    squared errors the gap is the variance of the outputs).

    Args:
        losses: pairs (mean of the subnets, full model) of losses on the probe, of the rounds so far that have both.
        first: the subnets' mean loss in the first round.
    """
    if not losses:
        return None
    subnets, full = (sum(each) / len(losses) for each in zip(*losses, strict=True))
    if not (0 < LOSS_OVER_SUBNETS * subnets < full and full - subnets > GAP_OF_FIRST * first):
        return None
    return (
        f"scale: the full model's loss on the probe was {full:.3g}, the subnets' {subnets:.3g}; something reads "
        "dealt units in another way than as a sum (a softmax, a norm, a product), or partition.share is wrong; fit the "
        "scale afterwards (skerry.merge.fit_scale), use relay or ensemble, which average outputs, or narrow, or keep "
        "axes whole (plan.without)"
    )
