"""One machine that trains the whole model on all the data."""

from skerry.algorithm import Algorithm
from skerry.partitions.everything import Everything


def single(*, local_steps: int = 20) -> Algorithm:
    """Plain training: W <- W - eta * grad L(W). A round is only a place to measure and to save.

    The optimizer's state goes on through the rounds, so the result is bit-equal to a PyTorch loop without Skerry.
    """
    return Algorithm(name="single", partition=Everything(1), local_steps=local_steps, optimizer_state="travel")
