"""Independent subnet training."""

from collections.abc import Sequence

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partition import Disjoint


def ist(
    workers: int,
    *,
    local_steps: int = 20,
    seed: int = 0,
    reshuffle: float = 0.1,
    capacities: Sequence[float] | None = None,
    core: float = 0.0,
    optimizer_state: StatePolicy = "reset",
    overlap: int = 0,
) -> Algorithm:
    """Deal each axis's units to the workers; each trains its own dense subnet; put the pieces together; deal again.

    With U_w the units of worker w in a round (disjoint, together all), W[U_w] the weights that touch only units of U_w,
    and J local steps of SGD on w's own data:

        W[U_w] <- W[U_w] - eta * sum_{j=1..J} grad L_w(W_j[U_w])   for every w at once, without any traffic.

    A weight between units of two workers rests. A weight that touches no unit is on all workers and averaged.

    Differs from the paper: each round a tenth of the units is dealt again by default; ``reshuffle=1`` deals all, as the
    paper does, for five to ten times the bytes (docs/log.md has what each brings); the full model's consumers are
    scaled by 1/n (``calibrate.py``) and batch norm keeps running statistics, where the release uses the test batch's.

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, VLDB 2022, arXiv 1910.02120, algorithm 1.
    """
    weights = None if capacities is None else tuple(capacities)
    return Algorithm(
        name="ist",
        partition=Disjoint(workers, seed, reshuffle=reshuffle, capacities=weights, core=core),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
    )
