"""Learning-rate schedules over the whole training.

A schedule maps the progress of training, from 0 at the first step to 1 after the last, to the factor that the
optimizer's learning rates are multiplied by. Progress counts local steps, so it is smooth within a round.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """Return 1."""
    return 1.0


def cosine(progress: float) -> float:
    """Return (1 + cos(pi * progress)) / 2: from 1 down to 0.

    References: Loshchilov, Hutter: SGDR, ICLR 2017, arXiv 1608.03983, equation 5 without restarts.
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))
