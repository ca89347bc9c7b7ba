"""Learning-rate schedules over the whole training.

A schedule maps the progress of training, from 0 at the first step to 1 after the last, to the factor that the
optimizer's learning rates are multiplied by. Progress counts local steps, so the factor changes within a round, too.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """Return 1: the learning rates of the optimizer throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Return (1 + cos(pi * progress)) / 2: from 1 down to 0.

    References:
        Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, arXiv 1608.03983, equation
        5, without restarts.

    Example:
        >>> cosine(0.0), cosine(1.0)
        (1.0, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))
