"""How errors fall: against the rate of a theorem, to a floor, and whether that is one."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skerry.experiments.theory.frame.fit import numbers
from skerry.experiments.theory.frame.simulate import ROUNDING, Trace
from skerry.experiments.theory.frame.verdict import Curve, Panel, Verdict

HIGHEST = 0.25
"""Of the first error: what stays above it is no floor that a rate could lead to."""


def at_rate(who: str, traces: Sequence[Trace], rates: Sequence[float], *, floor: bool = True) -> Verdict:
    """The verdict on ||y - u_k||^2 <= rate^k ||y - u_0||^2 + floor; ``floor=False``: that it is 0."""
    what = "rate^k plus the measured floor" if floor else "rate^k, no floor"
    return Verdict(claim=f"{who}: worst error over {what}", bound=1.0, measured=over_rate(traces, rates, floor=floor))


def over_rate(traces: Sequence[Trace], rates: Sequence[float], *, floor: bool = True) -> float:
    """The largest ||y - u_k||^2 / (rate^k ||y - u_0||^2 + floor) over rounds k, as a mean over traces.

    It is at most 1 where the error falls at least at the theorem's rate until it is at its floor.

    Args:
        floor: take the mean error of the last third of the rounds for the floor, and compare the rounds before; where
            it is above ``HIGHEST``, errors did not fall and any rate would do: infinite. Else no floor: compare all
            rounds but those whose errors are rounding.
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
    """For each trace log(mean error of the last third of the rounds / of the middle third)."""
    third = len(traces[0].errors) // 3
    return torch.stack([(t.errors[-third:].mean() / t.errors[-2 * third : -third].mean()).log() for t in traces])


def settled(points: Sequence[Sequence[Trace]]) -> Verdict:
    """The verdict on floors being floors: at no point do errors still halve from the middle to the last third.

    Exponents of floors mean nothing where a run was too short to reach them.
    """
    least = torch.stack([later_over_earlier(point).mean() for point in points]).min()
    claim = "floors have settled: least log of errors' last over their middle third"
    return Verdict(claim=claim, bound=-math.log(2), measured=float(least), sense=">")


def mean_errors(traces: Sequence[Trace]) -> list[float]:
    """The mean of ||y - u_k||^2 over traces, for each round."""
    return [float(value) for value in torch.stack([trace.errors for trace in traces]).mean(0)]


def floors(points: Sequence[Sequence[Trace]]) -> Tensor:
    """The floors [repeats, points] of traces given point by point."""
    return numbers([trace.floor() for point in points for trace in point]).view(len(points), -1).T


def error_panel(title: str, traces: Mapping[str, Sequence[Trace]], *, xlabel: str = "rounds") -> Panel:
    """The plot of mean errors against rounds, a curve a label."""
    curves = [Curve(label, range(len(found[0].errors)), mean_errors(found)) for label, found in traces.items()]
    return Panel(title=title, xlabel=xlabel, ylabel="squared error", curves=curves)
