"""A relay: narrow nets that are handed on from worker to worker."""

import warnings

from skerry.algorithm import Algorithm, StatePolicy
from skerry.partitions.assignment import Partition
from skerry.partitions.cyclic import Cyclic
from skerry.partitions.limited import Limited
from skerry.plan.dims import Axis
from skerry.trained import Apart


def relay(
    workers: int,
    *,
    local_steps: int = 20,
    seed: int = 0,
    nets: int | None = None,
    max_exposure: float = 1.0,
    optimizer_state: StatePolicy = "reset",
) -> Algorithm:
    """Deal units once to n narrow nets that share nothing; after each round every worker hands its net to the next.

    With W_k the weights of net k and J local steps of SGD on the data of worker w:

        W_k <- W_k - eta * sum_{j=1..J} grad L_w(W_{k,j}),   w = (k + t) mod n in round t;   f(x) = (1/n) sum_k f_k(x).

    After n rounds every net has been trained on the data of all workers, and every worker has seen every net. Only
    outputs are averaged. The nets are trained and exported side by side (``skerry.subnet.SideBySide``), and the given
    model is not changed. In a round each worker sends its net once.

    **With label skew** a net forgets the classes that its next worker lacks: give ``skerry.train`` the workers'
    ``log_priors``, or use ``narrow`` (docs/your-run.md).

    Args:
        workers: n.
        local_steps: J.
        seed: of the dealing.
        nets: how many there are, at least as many as workers; None: n. With more, worker w has net (w - t) mod nets in
            round t, and the others rest: the training can go on with other workers.
        max_exposure: the fraction of the nets that a worker may ever see. Below 1, each net stays within a fixed group
            of workers (``skerry.partitions.Limited``), and is never trained on the data of others.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.

    Raises:
        ValueError: ``nets`` is less than ``workers``, or given together with ``max_exposure``; in training, where
            subnets share matrices or blocks; use ``ist`` there.

    Example:
        >>> relay(workers=4, local_steps=50).rounds_per_cycle
        4

    References:
        Chang et al.: Distributed deep learning networks among institutions for medical imaging, JAMIA 25(8), 2018
        (cyclical weight transfer).
        Li, Lyu: Convergence Analysis of Sequential Federated Learning on Heterogeneous Data, NeurIPS 2023, arXiv
        2311.03154 (how such sequential training converges).

    Differs from the paper: Chang et al. hand one whole model on, which one worker trains at a time; here n parts of a
    model go round at once, and all workers train. ``max_exposure`` is ours; its default gives what is above.
    """
    partition: Partition = Cyclic(workers, num_places=nets)
    cycle = nets or workers
    limited = Limited(workers, max_exposure, seed)  # checks the fraction
    if max_exposure < 1:
        if nets is not None:
            raise ValueError(f"nets={nets}: with max_exposure={max_exposure:g} a worker has a net; leave one out")
        partition, cycle = limited, -(-workers // limited.num_groups(Axis("nets", workers)))
        if cycle == 1:
            warnings.warn(
                f"max_exposure={max_exposure:g} with {workers} workers: nets never move, as in ensemble; 2/{workers} "
                "is the least with which they do",
                stacklevel=2,
            )
    return Algorithm(
        name="relay",
        partition=partition,
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        trains=Apart(nets or workers, seed),
        rounds_per_cycle=cycle,
    )
