"""Synchronous data parallelism."""

from skerry.algorithm import Algorithm
from skerry.partitions.everything import Everything


def ddp(workers: int, *, local_steps: int = 20) -> Algorithm:
    """Replicas of the whole model, by torch's DistributedDataParallel: in every step gradients are averaged.

        W <- W - eta (1/n) sum_w grad L_w(W)

    A round is only a place to measure and to save; there running statistics are averaged (and weights, which are equal
    already: 1/``local_steps`` more bytes than need be). Needs one process a worker.

    References:
        Li et al.: PyTorch Distributed: Experiences on Accelerating Data Parallel Training, VLDB 2020, arXiv 2006.15704.
    """
    return Algorithm(
        name="ddp",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state="stay",
        synchronous=True,
    )
