"""Independent subnet training."""

from collections.abc import Sequence

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.disjoint import Disjoint


def ist(
    workers: int,
    *,
    local_steps: int = 20,
    seed: int = 0,
    reshuffle: float = 1.0,
    capacities: Sequence[float] | None = None,
    core: float = 0.0,
    optimizer_state: StatePolicy = "reset",
    overlap: int = 0,
) -> Algorithm:
    """Deal each axis's units to the workers; each trains its own dense subnet; put the pieces together; deal anew.

    With U_w the units of worker w in a round (disjoint, together all), W[U_w] the weights that touch only units of U_w,
    and J local steps of SGD on w's own data:

        W[U_w] <- W[U_w] - eta * sum_{j=1..J} grad L_w(W_j[U_w])   for every w at once, without any traffic.

    A weight between units of two workers rests. A weight that touches no unit is on all workers and is averaged. In
    the next round new U_w are dealt, so weights between all units are trained, each in one round in n on average.

    Differs from the paper: what reads units is scaled by 1/n in the full model (``calibrate.py``), and batch norm keeps
    running statistics, where the release uses the test batch's. ``reshuffle``, ``capacities``, ``core`` and ``overlap``
    are ours; their defaults are the paper's algorithm.

    Args:
        workers: n.
        local_steps: J.
        seed: of the dealing.
        reshuffle: the fraction of units that are dealt again each round, see ``Disjoint``; the others stay with their
            worker.
        capacities: a weight for each worker; units are dealt in proportion.
        core: the fraction of each axis that all workers hold and average.
        optimizer_state: what becomes of momenta, see ``Algorithm``.
        overlap: see ``Algorithm``.

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, VLDB 2022, arXiv 1910.02120, algorithm 1.
    """
    return Algorithm(
        name="ist",
        partition=Disjoint(workers, seed, reshuffle, None if capacities is None else tuple(capacities), core),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
    )
