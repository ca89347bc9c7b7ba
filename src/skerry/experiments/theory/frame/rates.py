"""How errors fall: compared with the rate of a theorem, down to a floor, and whether that floor is one."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import numbers
from skerry.experiments.theory.frame.simulate import ROUNDING, Trace
from skerry.experiments.theory.frame.verdict import Panel, Verdict, over_rounds

HIGHEST = 0.25
"""Fraction of the first error. Errors that stay above it have not fallen, so they do not count as a floor."""


def at_rate(who: str, traces: Sequence[Trace], rates: Sequence[float], *, floor: bool = True) -> Verdict:
    """Return the verdict on ||y - u_k||^2 <= rate^k ||y - u_0||^2 + floor; ``floor=False``: the floor is 0."""
    what = "rate^k plus the measured floor" if floor else "rate^k, no floor"
    return Verdict(f"{who}: worst error over {what}", "<=", 1.0, over_rate(traces, rates, floor=floor))


def over_rate(traces: Sequence[Trace], rates: Sequence[float], *, floor: bool = True) -> float:
    """Return the largest ||y - u_k||^2 / (rate^k ||y - u_0||^2 + floor) over rounds k, as a mean over traces.

    It is at most 1 if the error falls at least at the theorem's rate until it reaches its floor.

    Args:
        traces: one per repeat.
        rates: the theorem's rate for each of them.
        floor: True: the floor is the mean error of the last third of the rounds, and earlier rounds are compared. If it
            is above ``HIGHEST``, errors did not fall and any rate would pass: infinite. False: no floor; all rounds
            are compared, except those with errors at rounding level.
    """
    worst = []
    for trace, rate in zip(traces, rates, strict=True):
        errors = trace.errors
        end = trace.floor() if floor else 0.0
        bound = errors[0] * rate ** torch.arange(len(errors), dtype=torch.float64) + end
        counted = ~(errors <= ROUNDING * errors[0])  # written so that NaN counts
        counted[0] = False  # equal by definition
        if floor:
            counted[-(len(errors) // 3) :] = False
        falls = end <= HIGHEST * float(errors[0])
        worst.append(float((errors / bound)[counted].max()) if falls else math.inf)
    return sum(worst) / len(worst)


def later_over_earlier(traces: Sequence[Trace]) -> Tensor:
    """Return, for each trace, log(mean error of the last third of the rounds / of the middle third)."""
    third = len(traces[0].errors) // 3
    return torch.stack([(t.errors[-third:].mean() / t.errors[-2 * third : -third].mean()).log() for t in traces])


def settled(points: Sequence[Sequence[Trace]]) -> Verdict:
    """Return the verdict that floors are floors: nowhere do errors still halve from the middle to the last third.

    Exponents of floors mean nothing if a run was too short to reach them.
    """
    least = torch.stack([later_over_earlier(point).mean() for point in points]).min()
    return Verdict(
        "floors have settled: least log of errors' last over their middle third", ">", -math.log(2), float(least)
    )


def mean_errors(traces: Sequence[Trace]) -> Tensor:
    """Return the mean of ||y - u_k||^2 over traces, [rounds + 1]."""
    return torch.stack([trace.errors for trace in traces]).mean(0)


def floors(points: Sequence[Sequence[Trace]]) -> Tensor:
    """Return the floors [repeats, points] of the traces at each point."""
    return numbers([trace.floor() for point in points for trace in point]).view(len(points), -1).T


def error_panel(title: str, traces: Mapping[str, Sequence[Trace]], *, xlabel: str = "rounds") -> Panel:
    """Return the plot of mean errors against rounds, one curve per label."""
    curves = {label: mean_errors(found) for label, found in traces.items()}
    return over_rounds(title, "squared error", curves, xlabel=xlabel)
