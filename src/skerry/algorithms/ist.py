"""Independent subnet training."""

from collections.abc import Sequence

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partition import Disjoint


def ist(
    workers: int,
    *,
    local_steps: int = 20,
    seed: int = 0,
    reshuffle: float | None = None,
    capacities: Sequence[float] | None = None,
    core: float = 0.0,
    optimizer_state: StatePolicy = "reset",
    overlap: int = 0,
) -> Algorithm:
    """Deal each axis's units to the workers; each trains its own dense subnet; hand the pieces on; put them together.

    With U_w the units of worker w in a round (disjoint, together all), W[U_w] the weights that touch only units of U_w,
    and J local steps of SGD on w's own data:

        W[U_w] <- W[U_w] - eta * sum_{j=1..J} grad L_w(W_j[U_w])   for every w at once, without any traffic.

    A weight between units of two workers rests. A weight that touches no unit is on all workers and averaged.

    What becomes of U_w after a round is a choice. By default it is a *relay*: units stay together, and every worker
    hands its subnet on to the next one, so that each subnet meets all data; weights between two subnets are zero, and
    the full model is the subnets side by side. With ``reshuffle=1`` all units are dealt anew, as in the paper: weights
    between all units are trained, each in one round in n on average, and units find new neighbours each time.

    Differs from the paper: the relay (docs/log.md has what each brings); the full model's consumers are scaled by 1/n
    (``calibrate.py``) and batch norm keeps running statistics, where the release uses the test batch's.

    Args:
        workers: n.
        local_steps: J.
        seed: of the dealing.
        reshuffle: None: a relay. A number: the fraction of units that are dealt again each round, see ``Disjoint``; the
            others stay where they are.
        capacities: a weight a worker; units are dealt in proportion. A relay needs equal ones.
        core: the fraction of each axis that all workers hold and average.
        optimizer_state: what becomes of momenta, see ``Algorithm``.
        overlap: see ``Algorithm``.

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, VLDB 2022, arXiv 1910.02120, algorithm 1.
    """
    weights = None if capacities is None else tuple(capacities)
    return Algorithm(
        name="ist",
        partition=Disjoint(
            workers, seed, reshuffle=reshuffle or 0.0, capacities=weights, core=core, relay=reshuffle is None
        ),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
        zero_between=not reshuffle and not core,  # a core reads units of all subnets
    )
