"""One narrow net, replicated on all workers: the rival that subnet methods must beat."""

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
    proximal: float = 0.0,
    by_samples: bool = False,
) -> Algorithm:
    """Local SGD on a new net V with 1/n of each axis, which costs a worker what its subnet in IST costs:

        V <- (1/n) sum_w (V - eta * sum_{j=1..J} grad L_w(V_{w,j})),   width(V) = width(W) / n.

    or, with ``by_samples`` and n_w samples of worker w, V <- sum_w (n_w / sum_v n_v) V_w.

    The given model is not changed. Of an axis of blocks V has the first ones, so it is shallower.

    Args:
        workers: n.
        local_steps: J.
        width: the fraction of each axis in V; None: 1/n. Where a worker's subnet has another share (blocks that
            several workers hold), give that share for an equal cost.
        optimizer_state: what happens to optimizer state between rounds, see ``Algorithm``.
        overlap: local steps during which parameters are averaged, see ``Algorithm``.
        proximal: mu of FedProx, which adds (mu / 2) ||V_w - V||^2 to a worker's loss and so keeps it near the V that it
            got. Helps with label skew and many local steps. Costs a copy of V. Not with ``overlap``.

        by_samples: whether a worker counts by its number of samples, which its data must tell (``num_samples``). In one
            process or on sites, and not with ``overlap``.

    Raises:
        ValueError: ``width`` is not above 0 and at most 1, ``proximal`` is negative, or ``proximal`` or ``by_samples``
            is used with ``overlap``.

    References:
        Local SGD: Stich, ICLR 2019, arXiv 1805.09767, algorithm 1. The IST papers do not compare with it.
        FedAvg: McMahan et al., AISTATS 2017, arXiv 1602.05629, algorithm 1, which weights workers by their samples.
        FedProx: Li et al., MLSys 2020, arXiv 1812.06127, algorithm 2.
    Differs from the papers: in the place of local epochs all workers take ``local_steps``. FedProx samples clients by
    the size of their data and takes the plain mean; here the mean can have weights.
    """
    return Algorithm(
        name="narrow",
        partition=Everything(workers),
        local_steps=local_steps,
        optimizer_state=optimizer_state,
        overlap=overlap,
        proximal=proximal,
        by_samples=by_samples,
        trains=Narrow(1.0 / workers if width is None else width),
    )
