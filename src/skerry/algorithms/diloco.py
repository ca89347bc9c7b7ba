"""DiLoCo: rare averaging, with an outer optimizer."""

from skerry.algorithm import Algorithm
from skerry.merge.outer import Outer
from skerry.partitions.everything import Everything


def diloco(workers: int, *, local_steps: int = 100, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> Algorithm:
    """Replicas take H inner steps, with AdamW whose state stays with its worker; then one outer step with their mean:

        Delta = (1/n) sum_w (W - W_w),   m <- mu m + Delta,   W <- W - eta (Delta + mu m).

    The inner optimizer is the one that training is given; the paper's is AdamW. Buffers are averaged.

    References:
        Douillard et al.: DiLoCo: Distributed Low-Communication Training of Language Models, 2023, arXiv 2311.08105,
        algorithm 1 (H = 500, eta .7, mu .9).
    """
    return Algorithm(
        name="diloco",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state="stay",
        outer=Outer(outer_lr, outer_momentum),
    )
