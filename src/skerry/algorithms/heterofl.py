"""HeteroFL: nested parts for workers of different sizes."""

from collections.abc import Sequence

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.fractional import Nested

LEVELS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)


def heterofl(
    workers: int,
    *,
    local_steps: int = 20,
    fractions: Sequence[float] | None = None,
    optimizer_state: StatePolicy = "reset",
) -> Algorithm:
    """Worker w always trains the first ``fractions[w]`` of each axis; what several have trained is averaged:

        W[e] <- mean of W_w[e] over the workers w that hold element e.

    By default fractions are the paper's levels 1, 1/2, 1/4, 1/8, 1/16 in turn: **the first worker holds the whole
    model**. With equal fractions nothing beyond them is ever trained. Differs from the paper: activations are not
    scaled by 1/fraction in training; the full model is that of the worker with most units; batch norm keeps running
    statistics.

    References:
        Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
        Clients, ICLR 2021, arXiv 2010.01264, section 3.
    """
    levels = (LEVELS * workers)[:workers]
    return Algorithm(
        name="heterofl",
        partition=Nested(tuple(fractions or levels)),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
    )
