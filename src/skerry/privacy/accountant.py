"""The accountant: what epsilon some private steps have, and how much noise an epsilon takes. Needs the extra."""

import math
import warnings
from functools import cache
from typing import Any

History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sample rate, number of steps) of private steps on the same samples, in order."""

_ORDERS = [1 + x / 10 for x in range(1, 100)] + [*range(12, 64), 96, 128, 256, 512, 1024]
_DIGITS = 1e-3  # the noise is found to this part of it


@cache
def epsilon(history: History, delta: float) -> float:
    """Return the epsilon of the steps of ``history`` together, by Rényi differential privacy: a proven bound.

    Raises:
        ValueError: the extra ``private`` is not installed.

    Example:
        >>> 2.5 < epsilon(((1.0, 0.02, 600),), 1e-5) < 4.0
        True
    """
    steps = [part for part in history if part[2]]
    if not steps:
        return 0.0
    if any(noise == 0 for noise, _, _ in steps):
        return math.inf
    accountant = _opacus()
    accountant.history = steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another order would be tighter: it is a bound with these, too
        return float(accountant.get_epsilon(delta, alphas=_ORDERS))


@cache
def noise_for(target: float, delta: float, rate: float, steps: int, before: History) -> float:
    """Return the noise multiplier with which ``steps`` more steps after ``before`` reach at most epsilon ``target``.

    That of the last steps is kept, if it is enough.

    Raises:
        ValueError: the steps before have reached ``target`` already; the extra ``private`` is not installed.
    """

    def reached(noise: float) -> float:
        return epsilon((*before, (noise, rate, steps)), delta)

    if before and reached(before[-1][0]) <= target:
        return before[-1][0]
    if not steps:
        return 1.0
    low, high = 0.0, 1.0
    while reached(high) > target:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(
                f"privacy: the steps so far have reached epsilon {epsilon(before, delta):.3g} at delta={delta:g}, "
                f"expected less than target_epsilon={target:g} to go on"
            )
    while high - low > _DIGITS * high:
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > target else (low, middle)
    return high


def _opacus() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise ValueError("privacy: the package opacus is missing; run: pip install 'skerry[private]'") from error
    return RDPAccountant()
