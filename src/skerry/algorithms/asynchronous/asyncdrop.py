"""AsyncDrop: a server that waits for nobody, and clients that train the model with some units dropped."""

from skerry.algorithm import Algorithm
from skerry.clients import Clients
from skerry.merge.server import Server
from skerry.partitions.fractional import Sampled


def asyncdrop(
    workers: int,
    *,
    clients: Clients | None = None,
    local_steps: int = 20,
    drop: float = 0.25,
    weight: float = 0.5,
    heterogeneous: bool = False,
    seed: int = 0,
) -> Algorithm:
    """A client trains what is left after dropping a part of the units; the server mixes its reply in at once:

        W <- W (1 - M) + ((1 - alpha) W + alpha W_i) M,

    where M is 1 for the elements that client i has, and W_i began from an earlier W. A round is one reply. With
    ``heterogeneous``, units are not dropped by chance: in the order of how much units moved when they were last
    trained, faster clients drop units that moved more.

    Args:
        workers: clients that train at a time.
        clients: the owners of the data, with their speeds; None: as many as workers, of the same speed.
        local_steps: steps of a turn.
        drop: the fraction of each axis that a client drops, 0 to below 1.
        weight: alpha, above 0 and at most 1.
        heterogeneous: whether units are dropped by movement.
        seed: of the dropping, unless by movement.

    Raises:
        ValueError: a value out of range, or more workers than clients.

    Example:
        >>> asyncdrop(8, clients=Clients.spread(32, slowest=5.0), drop=0.25).num_parts
        32

    References:
        Dun, Hipolito, Jermaine, Dimitriadis, Kyrillidis: Efficient and Light-Weight Federated Learning via Asynchronous
        Distributed Dropout, AISTATS 2023, arXiv 2210.16105.

    Differs from the paper: clients train real narrow nets (the release multiplies channels by 0). Whole units are
    ranked by movement, not single weights; "moved" is the mean absolute move of the weights that make a unit in the
    last update that had it. Instead of a scale in training, the full model's is that of ``merge/calibrate.py``. The
    default of ``weight`` is ours.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop={drop}: expected a fraction from 0 to below 1")
    return Algorithm(
        name="asyncdrop",
        partition=Sampled((1 - drop,), seed),
        local_steps=local_steps,
        clients=clients or Clients.spread(workers),
        server=Server(active=workers, weight=weight, drops_moved=drop if heterogeneous else None),
    )
