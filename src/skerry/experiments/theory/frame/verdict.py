"""What a check finds: for each claim the bound, what was measured, and whether it holds.

``holds`` follows from the numbers and cannot be set, so a check that finds something else says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from skerry.experiments.theory.frame.fit import Estimate

Sense = Literal["<=", "<", ">"]


ROUNDING = 1e-12
"""Differences of float64 results below it say nothing: a slope of -1e-16 falls in no sense."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One claim of a theorem against one figure of a simulation.

    Attributes:
        claim: what is claimed, in a few words.
        bound: the number that the theorem gives.
        measured: the number that the simulation gives.
        margin: half of the 95% interval of ``measured``; 0 where nothing is estimated.
        sense: ``"<="``: the measured interval reaches down to the bound (a bound is not contradicted). ``"<"`` and
            ``">"``: the whole interval lies on that side of the bound (a direction is established).
        exponent: whether the numbers are exponents of power laws.
    """

    claim: str
    bound: float
    measured: float
    margin: float = 0.0
    sense: Sense = "<="
    exponent: bool = False

    @property
    def holds(self) -> bool:
        """Whether the claim holds; never where a number is NaN, and no direction by less than ``ROUNDING``."""
        if self.sense == ">":
            return self.measured - self.margin > self.bound + ROUNDING
        if self.sense == "<":
            return self.measured + self.margin < self.bound - ROUNDING
        return self.measured - self.margin <= self.bound

    @property
    def slack(self) -> float | None:
        """How many times better than the bound it is; None where a ratio says nothing (exponents, zeros)."""
        if self.bound <= 0 or self.measured <= 0 or self.exponent:
            return None
        return self.measured / self.bound if self.sense == ">" else self.bound / self.measured


def estimated(claim: str, sense: Sense, bound: float, found: Estimate, *, exponent: bool = False) -> Verdict:
    """The verdict on an estimate, with its interval."""
    return Verdict(claim=claim, bound=bound, measured=found.value, margin=found.margin, sense=sense, exponent=exponent)


@dataclass(frozen=True)
class Curve:
    """One line of a picture."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot of a picture; ``log`` names the axes on which it is logarithmic."""

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]
    log: Literal["", "y", "xy"] = "y"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """All that is found of one theorem.

    Attributes:
        source: paper and theorem.
        verdicts: one a claim.
        panels: the picture.
        notes: what a reader should know of the numbers: slack, what was not checked.
    """

    source: str
    verdicts: Sequence[Verdict]
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(verdict.holds for verdict in self.verdicts)
