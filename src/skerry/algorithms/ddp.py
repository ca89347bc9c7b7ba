"""Synchronous data parallelism: the baseline that exchanges gradients in every step."""

from skerry.algorithm import Algorithm
from skerry.partitions.everything import Everything


def ddp(workers: int, *, local_steps: int = 20) -> Algorithm:
    """Replicas of the whole model whose gradients are averaged in every step, by torch's DistributedDataParallel:

        W <- W - eta (1/n) sum_w grad L_w(W).

    It needs one process per worker. A round is only a point at which to evaluate and to save; buffers such as running
    statistics are averaged there, and weights too, though they are equal: 1/``local_steps`` more bytes than necessary.

    Args:
        workers: n.
        local_steps: steps per round.

    Raises:
        ValueError: in training, where workers do not run in processes of their own.

    References:
        Li et al.: PyTorch Distributed: Experiences on Accelerating Data Parallel Training, VLDB 2020, arXiv 2006.15704.

    Differs from the paper: torch averages gradients; the exchange at the end of a round is ours.
    """
    return Algorithm(
        name="ddp",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state="stay",
        synchronous=True,
    )
