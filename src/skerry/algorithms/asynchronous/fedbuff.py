"""FedBuff: a server that waits for some replies, whoever they are of."""

from skerry.algorithm import Algorithm
from skerry.clients import Clients
from skerry.merge.server import Server
from skerry.partitions.everything import Everything


def fedbuff(
    workers: int,
    *,
    clients: Clients | None = None,
    local_steps: int = 20,
    buffer: int = 10,
    weight: float = 1.0,
) -> Algorithm:
    """Clients train the whole model; after every K replies, each of which began from some W_k, the server takes a step:

        W <- W + eta (1/K) sum_{k=1..K} (W_k' - W_k),   W_k' = W_k - lr * sum_{j=1..J} grad L_k.

    Args:
        workers: clients that train at a time.
        clients: the owners of the data, with their speeds; None: as many as workers, of the same speed.
        local_steps: J, the steps of a turn.
        buffer: K, the replies of a round.
        weight: eta, the learning rate of the server.

    Raises:
        ValueError: a value out of range, or more workers than clients.

    References:
        Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous Aggregation,
        AISTATS 2022, arXiv 2106.06639, algorithm 1.

    Differs from the paper: late replies are not weighed down by 1 / sqrt(1 + delay).
    """
    return Algorithm(
        name="fedbuff",
        partition=Everything(buffer),
        local_steps=local_steps,
        clients=clients or Clients.spread(workers),
        server=Server(active=workers, weight=weight, adds_moves=True),
    )
