"""The result of a check: for each claim the bound, what was measured, and whether it holds; and what to plot.

``holds`` follows from the numbers and cannot be set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from skerry.experiments.theory.frame.fit import Estimate

Sense = Literal["<=", "<", ">"]
Values = Sequence[float] | Tensor

ROUNDING = 1e-12
"""A float64 difference below it is rounding: a slope of -1e-16 does not count as falling."""


@dataclass(frozen=True)
class Verdict:
    """One claim of a theorem against one figure of a simulation.

    Attributes:
        claim: in a few words.
        sense: ``"<="``: the interval around ``measured`` reaches down to the bound, so the bound is not contradicted.
            ``"<"`` and ``">"``: the whole interval lies on that side of the bound, so a direction is established.
        bound: the number given by the theorem.
        measured: the number given by the simulation.
        margin: half of the 95% interval of ``measured``; 0 if nothing is estimated.
        exponent: whether the numbers are exponents of power laws.
    """

    claim: str
    sense: Sense
    bound: float
    measured: float
    margin: float = 0.0
    exponent: bool = False

    @property
    def holds(self) -> bool:
        """Whether the claim holds: not if a number is NaN, and no direction by less than ``ROUNDING``."""
        if self.sense == ">":
            return self.measured - self.margin > self.bound + ROUNDING
        if self.sense == "<":
            return self.measured + self.margin < self.bound - ROUNDING
        return self.measured - self.margin <= self.bound

    @property
    def slack(self) -> float | None:
        """By what factor it is better than the bound; None where a ratio has no meaning (exponents, zeros)."""
        if self.bound <= 0 or self.measured <= 0 or self.exponent:
            return None
        return self.measured / self.bound if self.sense == ">" else self.bound / self.measured


def estimated(claim: str, sense: Sense, bound: float, found: Estimate, *, exponent: bool = False) -> Verdict:
    """Return the verdict on an estimate and its interval."""
    return Verdict(claim, sense, bound, found.value, found.margin, exponent)


@dataclass(frozen=True)
class Panel:
    """One plot of a picture.

    Attributes:
        title, xlabel, ylabel: its texts.
        curves: x and y by label.
        log: the axes that are logarithmic.
    """

    title: str
    xlabel: str
    ylabel: str
    curves: Mapping[str, tuple[Values, Values]]
    log: Literal["", "y", "xy"] = "y"


def over_rounds(
    title: str, ylabel: str, curves: Mapping[str, Values], *, xlabel: str = "rounds", first: int = 0
) -> Panel:
    """Return the plot of values per round, from the round ``first`` on."""
    return Panel(title, xlabel, ylabel, {label: (range(first, first + len(y)), y) for label, y in curves.items()})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of checking one theorem.

    Attributes:
        source: paper and theorem.
        verdicts: one per claim.
        panels: the picture.
        notes: what a reader should know about the numbers, such as slack, or what was not checked.
    """

    source: str
    verdicts: Sequence[Verdict]
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(verdict.holds for verdict in self.verdicts)
