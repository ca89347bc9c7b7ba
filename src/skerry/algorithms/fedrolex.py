"""FedRolex: workers train a window of units that rolls over the model."""

from collections.abc import Sequence

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.fractional import Rolling


def fedrolex(
    workers: int,
    *,
    local_steps: int = 20,
    step: int = 1,
    fractions: Sequence[float] | None = None,
    optimizer_state: StatePolicy = "reset",
) -> Algorithm:
    """In round t every worker w trains a window of units that begins at unit t * step; then elements are averaged:

        U_w(t) = {(t * step + k) mod N : k < fraction_w * N},   W[e] <- mean of W_w[e] over the holders of e,

    for each axis of N units.

    Args:
        workers: n.
        local_steps: steps per round.
        step: units that the window moves on each round.
        fractions: for each worker the fraction of each axis that it holds; None: 1/n.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.

    References:
        Alam, Liu, Yan, Zhang: FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction,
        NeurIPS 2022, arXiv 2212.01548, section 3.2.

    Differs from the paper: the scale for units that a subnet lacks is applied in the full model
    (``merge/calibrate.py``); ``step`` may exceed 1, for short runs; all workers take part in every round.
    """
    return Algorithm(
        name="fedrolex",
        partition=Rolling(tuple(fractions or (1.0 / workers,) * workers), step),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
    )
