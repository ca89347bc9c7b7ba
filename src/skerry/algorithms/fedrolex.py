"""FedRolex: a window of units that rolls over the model."""

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
    """In round t every worker w trains the units of a window that begins at unit t * step of each axis; all average:

        U_w(t) = {(t * step + k) mod N : k < fraction_w * N},   W[e] <- mean of W_w[e] over the holders of e.

    Windows are 1/n of each axis, or ``fractions``. Differs from the paper: the scale for units that a subnet has not is
    applied in the full model (``calibrate.py``); ``step`` may be more than 1, since runs here are short.

    References:
        Alam, Liu, Yan, Zhang: FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction,
        NeurIPS 2022, arXiv 2212.01548, section 3.2.
    """
    return Algorithm(
        name="fedrolex",
        partition=Rolling(tuple(fractions or (1.0 / workers,) * workers), step),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
    )
