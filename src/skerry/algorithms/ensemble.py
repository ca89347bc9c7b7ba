"""Independent narrow nets whose outputs are averaged."""

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.cyclic import Cyclic
from skerry.trained import Apart


def ensemble(workers: int, *, local_steps: int = 20, seed: int = 0, optimizer_state: StatePolicy = "stay") -> Algorithm:
    """Deal units once, to n narrow nets that share nothing; worker w trains net w from beginning to end:

        f(x) = (1/n) sum_w f_w(x),

    the mean of outputs. It is a ``relay`` in which nobody hands anything on: no traffic at all. What is trained and
    exported are the nets side by side (``skerry.subnet.SideBySide``), and the given model is not changed.

    Args:
        workers: n.
        local_steps: steps a round, which is only a place to measure and to save.
        seed: of the dealing.
        optimizer_state: what becomes of momenta between rounds, see ``Algorithm``.

    Raises:
        ValueError: on training, where subnets share matrices or blocks.

    References:
        Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
        NeurIPS 2017, arXiv 1612.01474 (there outputs are averaged after softmax).
    """
    return Algorithm(
        name="ensemble",
        partition=Cyclic(workers, step=0),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        trains=Apart(workers, seed),
    )
