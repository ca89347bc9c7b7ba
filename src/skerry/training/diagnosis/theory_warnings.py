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

from skerry.plan.warnings import FEW_UNITS
from skerry.training.diagnosis.measures import drift
from skerry.training.diagnosis.remedies import Situation, advice

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
SCALE_EVALUATIONS = 3
"""The latest evaluations by which that is judged."""
NEVER_TRAINED = 0.01
"""The limit of the fraction of units that are never trained."""
LOSS_GROWTH = 0.1
"""The limit of the growth of the training loss, as a fraction of that of the first round."""
LOSS_ROUNDS = 5
"""The latest rounds by which that is judged."""

CHECKS = {
    "bottleneck": f"a subnet has at least {FEW_UNITS} neurons or channels of each axis",
    "one unit per worker": "where units of an axis read each other, a subnet has several",
    "untrained weights": f"at most {UNTRAINED_PAIRS:.0%} of the weights between dealt units are never trained",
    "few rounds": "every net visits every worker",
    "label skew": f"a worker's labels differ from all labels by at most {SKEW_OF_MOST:.0%} of what is possible",
    "coverage": f"at most {NEVER_TRAINED:.0%} of the units are never trained",
    "drift": f"workers move apart at most {DRIFT_OVER_CHANCE:.0f} times as far as by chance; judged by the first "
    f"{MIN_DRIFT_ROUNDS} to {MAX_DRIFT_ROUNDS} measured rounds of several local steps, without overlap, where workers "
    f"share {MIN_SHARED_FRACTION:.0%} of their weights",
    "scale": f"the full model's loss is at most {LOSS_OVER_SUBNETS:.0f} times the subnets' loss on the probe, or close "
    f"to it, in the mean of the latest {SCALE_EVALUATIONS} evaluations",
    "refused": "no update was refused for values that are not finite",
    "loss": f"the training loss of the latest {LOSS_ROUNDS} rounds is at most {LOSS_GROWTH:.0%} above that of the "
    "first, and test losses are finite",
    "chance": "after the last round the full model does better than always guessing the most frequent class",
}
"""The kinds of warnings, and what holds where one was checked and did not come."""


class TheoryWarning(UserWarning):
    """This run goes wrong, or theory predicts that it will; the message says what to change."""


def drift_warning(square_of_mean: float, mean_of_squares: float, run: Situation) -> str | None:
    """Return a warning if workers move apart instead of forward.

    Rounds are summed before they are compared, so that the short moves at the end of a schedule, which are apart in
    every converged run, count little.

    Args:
        square_of_mean: squared length of the workers' mean move, summed over rounds.
        mean_of_squares: mean over workers of the squared length of their moves, summed over the same rounds.
        run: what it has already; it has at least two workers.
    """
    found, chance = drift(square_of_mean, mean_of_squares), math.sqrt(run.num_workers - 1)
    if found is None or found <= DRIFT_OVER_CHANCE * chance:
        return None
    return (
        f"drift: parameters on all workers moved {found:.1f} times as far apart as their mean moved (independent moves "
        f"of {run.num_workers} workers: {chance:.1f}), so exchanges undo most of the local steps; "
        f"{advice('drift', run)}"
    )


def label_skew_warning(skew: float, run: Situation) -> str | None:
    """Return a warning if workers, at least two, have different labels; ``skew`` is ``Diagnosis.label_skew``."""
    most = 1 - 1 / run.num_workers
    if skew <= SKEW_OF_MOST * most:
        return None
    return (
        f"label skew: the labels of a worker differ from all labels by {skew:.2f} (total variation, at most "
        f"{most:.2f}); local training on such data leaves a bias that no learning rate and no number of rounds removes "
        f"(arXiv 2306.16484); {advice('label skew', run)}"
    )


def coverage_warning(never: float, rounds_left: int, run: Situation) -> str | None:
    """Return a warning if too many units stay untrained: ``never`` is their fraction at the end of the run."""
    if never <= NEVER_TRAINED:
        return None
    return (
        f"coverage: {never:.0%} of the units will have had no training at the end ({rounds_left} rounds left); "
        f"{advice('coverage', run)}"
    )


def few_rounds_warning(
    num_rounds: int, rounds_per_cycle: int, run: Situation, num_clients: int | None = None
) -> str | None:
    """Return a warning if nets go from worker to worker, but not to all: ``rounds_per_cycle`` takes them to all.

    ``num_clients`` is how many clients there are, who take turns as workers; None: there are none.
    """
    if num_rounds >= rounds_per_cycle:
        return None
    who = f"{run.num_workers} workers" if num_clients is None else f"{num_clients} clients"
    if num_clients is None and rounds_per_cycle > run.num_workers:
        return (
            f"few rounds: nets rest in turn, so {num_rounds} rounds do not take each of them to all {who}, and "
            f"{rounds_per_cycle} do; {advice('few rounds', run, rounds=rounds_per_cycle)}"
        )
    return (
        f"few rounds: a net visits only {num_rounds} of {who} and never sees the data of the "
        f"others; {advice('few rounds', run, rounds=rounds_per_cycle)}"
    )


def untrained_warning(fraction: float, where: str, run: Situation) -> str | None:
    """Return a warning if too many weights between dealt units stay as they were initialized.

    Args:
        fraction: of the weights between two dealt units, those whose units no worker holds together in any round.
        where: between which axes most of them are.
        run: what it has already.
    """
    if fraction <= UNTRAINED_PAIRS:
        return None
    return (
        f"untrained weights: {fraction:.0%} of the weights between dealt units are never trained, because no worker "
        f"ever holds both units (most of them {where}); {advice('untrained weights', run)}"
    )


def scale_warning(losses: Sequence[tuple[float, float]], first: float, run: Situation) -> str | None:
    """Return a warning if the full model is far worse than its subnets.

    If its output is the mean of theirs and the loss is convex in the output, it cannot be worse at all (Jensen; for
    squared errors the gap is the variance of the outputs).

    Args:
        losses: pairs (mean of the subnets, full model) of losses on the probe, of the latest rounds that have both.
        first: the subnets' mean loss in the first round.
        run: what it has already.
    """
    subnets, full = (sum(each) / len(losses) for each in zip(*losses, strict=True))
    if not (0 < LOSS_OVER_SUBNETS * subnets < full and full - subnets > GAP_OF_FIRST * first):
        return None
    why = "something reads dealt units in another way than as a sum (a softmax, a norm, a product); "
    return (
        f"scale: the full model's loss on the probe was {full:.3g}, the subnets' {subnets:.3g}; "
        f"{'' if run.apart else why}{advice('scale', run)}"
    )


def refused_warning(round: int, refused: Sequence[int], run: Situation) -> str | None:
    """Return a warning if workers were ``refused`` in ``round``."""
    if not refused:
        return None
    who = ", ".join(map(str, refused))
    return (
        f"refused: the update of worker {who} in round {round} has values that are not finite, and the old values were "
        f"kept; {advice('refused', run)}"
    )


def loss_warning(first: float, latest: float, run: Situation) -> str | None:
    """Return a warning if the training loss grows: ``first`` is that of the first round, ``latest`` a later mean."""
    if latest - first <= LOSS_GROWTH * abs(first):
        return None
    return (
        f"loss: the training loss was {first:.3g} in the first round and is {latest:.3g} in the mean of the latest "
        f"{LOSS_ROUNDS}; {advice('loss', run)}"
    )


def full_loss_warning(loss: float, run: Situation) -> str | None:
    """Return a warning if the full model's loss on the test set is not finite."""
    if math.isfinite(loss):
        return None
    return f"loss: the full model's loss on the test set is {loss}; {advice('loss', run)}"


def chance_warning(accuracy: float, most_frequent: float, num: int, run: Situation) -> str | None:
    """Return a warning if a trained model has learned nothing, up to two standard errors.

    Args:
        accuracy: of the full model.
        most_frequent: the frequency of the most frequent class in the test set.
        num: its number of samples.
        run: what it has already.
    """
    if accuracy > most_frequent + 2 * math.sqrt(most_frequent * (1 - most_frequent) / num):
        return None
    return (
        f"chance: after the last round the accuracy is {accuracy:.3f}, and always guessing the most frequent class has "
        f"{most_frequent:.3f}; {advice('chance', run)}"
    )
