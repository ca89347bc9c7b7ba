"""How errors fall: against the rate of a theorem, and whether they rise again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from skerry.theory.simulate import ROUNDING, Trace


def over_rate(traces: Sequence[Trace], rates: Sequence[float], *, floor: bool = True) -> float:
    """The largest ||y - u_k||^2 / (rate^k ||y - u_0||^2 + floor) over rounds k, as a mean over traces.

    It is at most 1 where the error falls at least at the theorem's rate until it is at its floor.

    Args:
        floor: take the largest error of the last third of the rounds; else 0, and leave out errors that are rounding.
    """
    worst = []
    for trace, rate in zip(traces, rates, strict=True):
        errors = trace.errors
        end = errors[-(len(errors) // 3) :].max() if floor else errors.new_zeros(())
        bound = errors[0] * rate ** torch.arange(len(errors), dtype=torch.float64) + end
        counted = ~(errors <= ROUNDING * errors[0])  # written so that NaN counts
        counted[0] = False  # equal by definition
        worst.append(float((errors / bound)[counted].max()))
    return sum(worst) / len(worst)


def later_over_earlier(traces: Sequence[Trace]) -> Tensor:
    """For each trace log(mean error of the last third of the rounds / of the middle third)."""
    third = len(traces[0].errors) // 3
    return torch.stack([(t.errors[-third:].mean() / t.errors[-2 * third : -third].mean()).log() for t in traces])


def mean_errors(traces: Sequence[Trace]) -> list[float]:
    """The mean of ||y - u_k||^2 over traces, for each round."""
    return [float(value) for value in torch.stack([trace.errors for trace in traces]).mean(0)]


def floors(traces: Sequence[Sequence[Trace]]) -> Tensor:
    """The floors [repeats, points] of traces given point by point."""
    return torch.tensor([[trace.floor() for trace in point] for point in traces], dtype=torch.float64).T
