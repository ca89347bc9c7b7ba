"""IST: independent subnet training."""

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
    """Deal each axis's units to the workers; each trains its own dense subnet; combine them; deal again.

    With U_w the units of worker w in a round (disjoint, together all), W[U_w] the weights that touch only units of U_w,
    and J local steps of SGD on the data of w:

        W[U_w] <- W[U_w] - eta * sum_{j=1..J} grad L_w(W_j[U_w])   for all w at once, without communication.

    A weight between units of two workers is not trained in this round. A weight that touches no unit is on all workers
    and is averaged. New U_w are dealt in the next round, so every weight between two units is trained in one round in n
    on average.

    Args:
        workers: n.
        local_steps: J.
        seed: of the dealing.
        reshuffle: the fraction of units that are dealt again each round, see ``skerry.partitions.Disjoint``; the
            others stay with their worker.
        capacities: a positive weight per worker; units are dealt in proportion. None: equal.
        core: the fraction of each axis that all workers hold and average.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.
        overlap: local steps during which shared parameters are averaged, see ``Algorithm``.

    Raises:
        ValueError: a value out of range; in training, an axis with fewer units than workers.

    Example:
        >>> ist(workers=4, local_steps=50).partition.num_workers
        4

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, VLDB 2022, arXiv 1910.02120, algorithm 1.

    Differs from the paper: in the full model, the weights that read units are scaled by 1/n (``merge/calibrate.py``),
    and batch norm uses running statistics, where the release uses those of the test batch. ``reshuffle``,
    ``capacities``, ``core`` and ``overlap`` are ours; their defaults give the paper's algorithm.
    """
    return Algorithm(
        name="ist",
        partition=Disjoint(workers, seed, reshuffle, None if capacities is None else tuple(capacities), core),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
    )
