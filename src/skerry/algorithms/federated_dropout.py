"""Federated dropout: each worker trains a random part of the model."""

from collections.abc import Sequence

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.fractional import Sampled


def federated_dropout(
    workers: int,
    *,
    local_steps: int = 20,
    seed: int = 0,
    fractions: Sequence[float] | None = None,
    optimizer_state: StatePolicy = "reset",
) -> Algorithm:
    """Each round every worker w draws a part U_w of the units at random and trains it; then elements are averaged:

        W[e] <- mean of W_w[e] over the workers w that hold element e; unchanged if none does.

    Args:
        workers: n.
        local_steps: steps per round.
        seed: of the drawing.
        fractions: for each worker the fraction of each axis that it holds; None: 1/n.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.

    References:
        Caldas, Konečný, McMahan, Talwalkar: Expanding the Reach of Federated Learning by Reducing Client Resource
        Requirements, 2018, arXiv 1812.07210, section 3.2.

    Differs from the paper: the scale for units that a subnet lacks is applied in the full model
    (``merge/calibrate.py``) instead of in training; all workers take part in every round; nothing is compressed.
    """
    return Algorithm(
        name="federated_dropout",
        partition=Sampled(tuple(fractions or (1.0 / workers,) * workers), seed),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
    )
