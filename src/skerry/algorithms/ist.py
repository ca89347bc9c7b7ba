"""Independent subnet training."""

from collections.abc import Sequence
from dataclasses import replace

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.disjoint import Disjoint
from skerry.partitions.relay import Relay


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

    What becomes of U_w after a round is a choice. ``reshuffle=1`` deals all units anew, as the paper does: weights
    between all units are trained, each in one round in n on average, and a unit learns to work with any others. A
    *relay* keeps units together, and every worker hands its subnet on to the next one, so that each subnet meets all
    data; weights between two subnets are zero, and the full model is the subnets side by side.

    By default it is a relay where that can be: where subnets share nothing but vectors, capacities are equal and there
    is no core. Else all units are dealt anew: subnets that share a residual stream add up in it, so units have to work
    with those of any other subnet. **With unlike labels on the workers** a subnet that is handed on forgets the classes
    of the last worker: give ``skerry.train`` the workers' ``log_priors``, or ``reshuffle=.1`` here (docs/your-run.md).
    To go on from a trained model, give ``reshuffle``, too.

    Differs from the paper: the relay (docs/log.md has what each brings); the full model's consumers are scaled by 1/n
    (``calibrate.py``) and batch norm keeps running statistics, where the release uses the test batch's.

    Args:
        workers: n.
        local_steps: J.
        seed: of the dealing.
        reshuffle: the fraction of units that are dealt again each round, see ``Disjoint``; the others stay where they
            are. None: a relay where it can be, else 1.
        capacities: a weight a worker; units are dealt in proportion.
        core: the fraction of each axis that all workers hold and average.
        optimizer_state: what becomes of momenta, see ``Algorithm``.
        overlap: see ``Algorithm``.

    References:
        Yuan, Wolfe, Dun, Tang, Kyrillidis, Jermaine: Distributed Learning of Fully Connected Neural Networks using
        Independent Subnet Training, VLDB 2022, arXiv 1910.02120, algorithm 1.
    """
    weights = None if capacities is None else tuple(capacities)
    fraction = 1.0 if reshuffle is None else reshuffle
    dealt = Algorithm(
        name="ist",
        partition=Disjoint(workers, seed, reshuffle=fraction, capacities=weights, core=core),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
    )
    if reshuffle is not None or core or len(set(weights or ())) > 1:
        return dealt
    return replace(dealt, partition=Relay(workers, seed), apart=True, where_shared=dealt)
