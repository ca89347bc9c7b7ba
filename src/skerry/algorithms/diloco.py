"""DiLoCo: averaging after many local steps, with an outer optimizer."""

from skerry.algorithm import Algorithm
from skerry.merge.outer import Outer
from skerry.partitions.everything import Everything


def diloco(workers: int, *, local_steps: int = 100, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> Algorithm:
    """Replicas take H local steps, each with an optimizer of its own; then the outer optimizer takes a step:

        Delta = (1/n) sum_w (W - W_w),   m <- mu m + Delta,   W <- W - eta (Delta + mu m).

    Args:
        workers: n.
        local_steps: H.
        outer_lr: eta.
        outer_momentum: mu.

    References:
        Douillard et al.: DiLoCo: Distributed Low-Communication Training of Language Models, 2023, arXiv 2311.08105,
        algorithm 1 (H = 500, eta = 0.7, mu = 0.9).

    Differs from the paper: the inner optimizer is the one that training is given, where the paper has AdamW; buffers
    are averaged; H is 100 by default.
    """
    return Algorithm(
        name="diloco",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state="stay",
        outer=Outer(outer_lr, outer_momentum),
    )
