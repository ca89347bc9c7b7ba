"""One machine that trains the whole model on all data."""

from skerry.algorithm import Algorithm
from skerry.partitions.everything import Everything


def single(*, local_steps: int = 20) -> Algorithm:
    """Plain training on one worker:

        W <- W - eta * grad L(W).

    A round is only a point at which to evaluate and to save. The optimizer keeps its state over rounds, so the result
    is bit-equal to a PyTorch loop without Skerry.

    Args:
        local_steps: steps per round.
    """
    return Algorithm(name="single", partition=Everything(1), local_steps=local_steps, optimizer_state="travel")
