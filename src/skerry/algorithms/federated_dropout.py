"""Federated dropout: each worker its own random part."""

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
    """Each round every worker w trains a part U_w of its own, drawn at random; what several have trained is averaged:

        W[e] <- mean of W_w[e] over the workers w that hold element e; W[e] stays where nobody does.

    Parts are 1/n of each axis, or ``fractions``. Differs from the paper: the scale for units that a subnet has not is
    applied in the full model (``calibrate.py``) instead of in training; nothing is compressed.

    References:
        Caldas, Konečný, McMahan, Talwalkar: Expanding the Reach of Federated Learning by Reducing Client Resource
        Requirements, 2018, arXiv 1812.07210, section 3.2.
    """
    return Algorithm(
        name="federated_dropout",
        partition=Sampled(tuple(fractions or (1.0 / workers,) * workers), seed),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
    )
