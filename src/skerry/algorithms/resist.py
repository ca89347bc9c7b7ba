"""ResIST: independent subnets of residual blocks."""

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
    """Deal residual blocks to the workers, at least ``min_units`` to each; average those that several hold.

    With B_w the blocks dealt to worker w in a round, w trains x <- x + f_b(x) for b in B_w and skips the other dealt
    blocks; blocks that are not dealt are on all workers. Then for each block, and for all other weights,

        W_b <- mean of W_b over the workers w with b in B_w.

    At inference x <- x + s f_b(x), where s is the share of subnets that had a block: |B_w| / number of blocks.

    The plan must deal out blocks, ``skerry.Blocks(..., branch=...)``, with ``branch`` the module that s scales.

    Args:
        workers: n.
        local_steps: steps per round.
        seed: of the dealing.
        min_units: the minimum number of blocks per worker.
        warmup_rounds: rounds of local SGD on the whole model that come first.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.
        overlap: local steps during which shared parameters are averaged, see ``Algorithm``.

    Raises:
        ValueError: a value out of range; in training, fewer blocks than ``min_units``.

    References:
        Dun, Wolfe, Jermaine, Kyrillidis: ResIST: Layer-Wise Decomposition of ResNets for Distributed Training, UAI
        2022, arXiv 2107.00961.

    Differs from the paper: s is the exact share, where the release has the larger of 1/n and min_units / blocks (the
    same but for a remainder).
    """
    return Algorithm(
        name="resist",
        partition=Warmup(warmup_rounds, Covering(workers, min_units, seed)),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
    )
