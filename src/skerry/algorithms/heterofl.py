"""HeteroFL: nested parts of the model for workers of different sizes."""

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
    """Worker w always trains the first ``fractions[w]`` of each axis; then elements are averaged:

        W[e] <- mean of W_w[e] over the workers w that hold element e.

    By default fractions are the paper's levels 1, 1/2, 1/4, 1/8, 1/16 in turn, so **the first worker holds the whole
    model**. Units beyond the largest fraction are never trained.

    Args:
        workers: n.
        local_steps: steps per round.
        fractions: for each worker the fraction of each axis that it holds; None: the levels.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.

    References:
        Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
        Clients, ICLR 2021, arXiv 2010.01264, section 3.

    Differs from the paper: activations are not scaled by 1/fraction in training, and the full model is the net of the
    worker with most units; batch norm keeps running statistics; all workers take part in every round.
    """
    levels = (LEVELS * workers)[:workers]
    return Algorithm(
        name="heterofl",
        partition=Nested(tuple(fractions or levels)),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
    )
