"""Independent narrow nets whose outputs are averaged."""

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.disjoint import Disjoint


def ensemble(workers: int, *, local_steps: int = 20, seed: int = 0, optimizer_state: StatePolicy = "stay") -> Algorithm:
    """Each worker trains its own 1/n of each axis from beginning to end; the full model is all of them side by side:

        f(x) = (1/n) sum_w f_w(x),

    the mean of outputs before softmax. It is subnet training that never deals again and in which weights between
    subnets are zero. Independent but for the bias of the output, which is averaged at the end of a round; a plan that
    leaves more whole is refused. For running statistics of the whole see ``calibrate.py``.

    References:
        Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
        NeurIPS 2017, arXiv 1612.01474 (there outputs are averaged after softmax).
    """
    return Algorithm(
        name="ensemble",
        partition=Disjoint(workers, seed, reshuffle=0.0),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        apart=True,
    )
