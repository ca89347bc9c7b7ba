"""Independent subnets of residual blocks."""

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.covering import Covering
from skerry.partitions.warmup import Warmup


def resist(
    workers: int,
    *,
    local_steps: int = 50,
    seed: int = 0,
    min_units: int = 1,
    warmup_rounds: int = 0,
    optimizer_state: StatePolicy = "reset",
    overlap: int = 0,
) -> Algorithm:
    """Deal residual blocks to the workers, at least ``min_units`` to each; average what several hold.

    With B_w the dealt blocks of worker w in a round, worker w trains x <- x + f_b(x) for b in B_w and the identity for
    the others, between the blocks that all have. Then, for each block and all other weights,

        W_b <- mean of W_b over the workers w with b in B_w.

    At inference x <- x + s f_b(x), with s the share of subnets that had a block: |B_w| / number of blocks.

    It wants a plan of blocks, ``skerry.Blocks(..., branch=...)``, whose ``branch`` names where s goes. First come
    ``warmup_rounds`` rounds of local SGD on the whole model.

    Differs from the paper: s is that share, where the release has the larger of 1/n and min_units / blocks (the same
    but for a remainder).

    References:
        Dun, Wolfe, Jermaine, Kyrillidis: ResIST: Layer-Wise Decomposition of ResNets for Distributed Training, UAI
        2022, arXiv 2107.00961.
    """
    return Algorithm(
        name="resist",
        partition=Warmup(warmup_rounds, Covering(workers, min_units, seed)),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
    )
