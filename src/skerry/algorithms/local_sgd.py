"""Local SGD: replicas that are averaged after some local steps."""

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.everything import Everything


def local_sgd(
    workers: int,
    *,
    local_steps: int = 20,
    optimizer_state: StatePolicy = "reset",
    overlap: int = 0,
    by_samples: bool = False,
) -> Algorithm:
    """Every worker trains a replica of the whole model for J steps on its own data; then all are averaged:

        W <- (1/n) sum_w (W - eta * sum_{j=1..J} grad L_w(W_{w,j})),

    or, with ``by_samples`` and n_w samples of worker w, W <- sum_w (n_w / sum_v n_v) W_w.

    Args:
        workers: n.
        local_steps: J.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.
        overlap: local steps during which parameters are averaged, see ``Algorithm``.
        by_samples: whether a worker counts by its number of samples, see ``narrow``.

    References:
        Stich: Local SGD Converges Fast and Communicates Little, ICLR 2019, arXiv 1805.09767, algorithm 1.
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
        Decentralized Data, AISTATS 2017, arXiv 1602.05629, algorithm 1 (FedAvg).

    Differs from the paper: FedAvg samples some of the workers each round and weights each by its number of samples;
    here all take part (without ``clients``), take the same number of steps, and have no weights without ``by_samples``.
    """
    return Algorithm(
        name="local_sgd",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
        by_samples=by_samples,
    )
