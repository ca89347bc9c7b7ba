"""An ensemble: independent narrow nets whose outputs are averaged."""

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.cyclic import Cyclic
from skerry.trained import Apart


def ensemble(
    workers: int,
    *,
    local_steps: int = 20,
    seed: int = 0,
    nets: int | None = None,
    optimizer_state: StatePolicy = "stay",
) -> Algorithm:
    """Deal units once to n narrow nets that share nothing; worker w trains net w all the time:

        f(x) = (1/n) sum_w f_w(x).

    It is a ``relay`` in which nets are not handed on: it sends nothing. The nets are trained and exported side by side
    (``skerry.subnet.SideBySide``), and the given model is not changed.

    Args:
        workers: n.
        local_steps: steps per round, which is only a point at which to evaluate and to save.
        seed: of the dealing.
        nets: how many there are, at least as many as workers; None: n. With more, worker w trains nets w, w + n, ... in
            turn, and the others rest: the training can go on with other workers. Then give ``optimizer_state="reset"``.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.

    Raises:
        ValueError: ``nets`` is less than ``workers``; in training, where subnets share matrices or blocks.

    References:
        Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
        NeurIPS 2017, arXiv 1612.01474.

    Differs from the paper: outputs are averaged before softmax; nets are narrow, each trains on the data of its worker
    only, and without adversarial examples.
    """
    return Algorithm(
        name="ensemble",
        partition=Cyclic(workers, moves=False, num_places=nets),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        trains=Apart(nets or workers, seed),
    )
