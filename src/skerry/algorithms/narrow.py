"""The honest rival of independent subnets: one small net, trained by everybody."""

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.everything import Everything
from skerry.trained import Narrow


def narrow(
    workers: int,
    *,
    local_steps: int = 20,
    width: float | None = None,
    optimizer_state: StatePolicy = "reset",
    overlap: int = 0,
) -> Algorithm:
    """Local SGD on a fresh net with 1/n of each axis: the memory and compute that IST asks of a worker, without IST.

    Where a worker's subnet has another share of each axis (blocks that several workers hold), ``width`` is that share.
    Of an axis of blocks it is the first ones: a shallower net.

    What IST must beat to be worth its while: the same cost a worker, but n replicas of one narrow net V,

        V <- (1/n) sum_w (V - eta * sum_{j=1..J} grad L_w(V_{w,j})),   width(V) = width(W) / n.

    References:
        Local SGD as in arXiv 1805.09767; that the IST papers leave this comparison out is our observation.
    """
    return Algorithm(
        name="narrow",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
        trains=Narrow(1.0 / workers if width is None else width),
    )
