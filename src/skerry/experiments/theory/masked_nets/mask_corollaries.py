"""The floor of training by Bernoulli masks: how it depends on workers, xi, local steps, width and initial scale.

From theorem 3 (``bernoulli_masks.py``) with tau = 1, one step per round: p = 1 is dropout, p > 1 multi-sample dropout,

    B1 = 64 (1-xi)^2 n^3 d / (m lambda_0^2) + 68 eta (theta - xi^2) n^3 kappa^2 / (p lambda_0)
         + (theta - xi^2) n kappa^2 / (6 p):

it falls as p grows, towards its first term; it is 0 at xi = 1 and grows with 1 - xi; it grows with kappa, at most as
kappa^2; it falls with m, towards its other terms; it grows with local steps. A bound only says "at most", so the notes
give the exponents of the measured floor, with 95% intervals over problems, beside those of the bound.

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, corollaries of theorem 3 (from a summary).

Differs from the paper: eta is half of 1 / lambda_max at each xi, so the step shrinks as xi grows.

With one step per round floors are reached late: after 24 rounds errors at small kappa or 1 - xi were still falling and
distorted the exponents. That floors have settled is therefore a claim, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from skerry.experiments.theory.frame.fit import exponent, numbers, slope
from skerry.experiments.theory.frame.masks import Bernoulli
from skerry.experiments.theory.frame.rates import at_rate, floors, settled
from skerry.experiments.theory.frame.shallow import limit_kernel, shallow
from skerry.experiments.theory.frame.simulate import Trace, extremes, run
from skerry.experiments.theory.frame.verdict import Finding, Panel, estimated
from skerry.experiments.theory.masked_nets.bernoulli_masks import floor_bound


@dataclass(frozen=True)
class Setting:
    """What a floor depends on, in the symbols of the statement."""

    m: int
    p: int
    xi: float
    tau: int
    kappa: float


def check(
    *,
    seed: int = 0,
    repeats: int = 6,
    width: int = 300,
    num_rounds: int = 48,
    keep: float = 0.5,
    workers: Sequence[int] = (1, 2, 4, 8),
    drops: Sequence[float] = (0.02, 0.1, 0.5),
    kappas: Sequence[float] = (0.5, 1.0, 2.0),
    locals_: Sequence[int] = (1, 2, 4, 8),
    widths: Sequence[int] = (150, 300, 600),
    step: float = 0.5,
) -> Finding:
    """Measure floors over ``repeats`` problems, changing one thing at a time from m = width, p = 2, tau = kappa = 1.

    Args:
        num_rounds: with too few of them floors are not reached.
        keep: xi, unless it is what changes; at 1 there is no floor that could fall with p.
        drops: values of 1 - xi.
        step: eta in units of 1 / lambda_max(xi H_infinity).
    """
    spectra = [extremes(limit_kernel(shallow(seed=s, width=1).x)) for s in range(seed, seed + repeats)]

    @cache  # the usual setting occurs in every sweep
    def traces(at: Setting) -> list[Trace]:
        found = []
        for s, (_, high) in zip(range(seed, seed + repeats), spectra, strict=True):
            problem = shallow(seed=s, width=at.m, kappa=at.kappa)
            eta = step / (at.xi * high)
            found.append(run(problem, Bernoulli(at.p, at.xi, s), step=eta, local=at.tau, num_rounds=num_rounds))
        return found

    def bound(at: Setting) -> float:
        (n, d), (low, high) = shallow(seed=seed, width=1).x.shape, spectra[0]
        eta, lambda_0 = step / (at.xi * high), at.xi * low
        return floor_bound(n=n, d=d, m=at.m, xi=at.xi, p=at.p, tau=at.tau, eta=eta, lambda_0=lambda_0, kappa=at.kappa)

    usual = Setting(m=width, p=2, xi=keep, tau=1, kappa=1.0)
    changed: dict[str, tuple[Sequence[float], list[Setting]]] = {
        "p": (workers, [replace(usual, p=p) for p in workers]),
        "1 - xi": (drops, [replace(usual, xi=1 - drop) for drop in drops]),
        "kappa": (kappas, [replace(usual, kappa=kappa) for kappa in kappas]),
        "local steps": (locals_, [replace(usual, tau=tau) for tau in locals_]),
        "m": (widths, [replace(usual, m=m) for m in widths]),
    }
    measured = {name: floors([traces(at) for at in settings]) for name, (_, settings) in changed.items()}
    found = {name: exponent(numbers(values), measured[name]) for name, (values, _) in changed.items()}
    compared = []
    for name, (values, settings) in changed.items():
        of_bound = float(slope(numbers(values), numbers([bound(at) for at in settings])))
        compared.append(f"{name} {found[name].value:.2f} ± {found[name].margin:.2f} and {of_bound:.2f}")
    whole = traces(replace(usual, xi=1.0, p=1))
    return Finding(
        source="arXiv 2112.02668, corollaries of theorem 3",
        verdicts=[
            estimated("floor falls with the samples p, exponent", "<", 0.0, found["p"]),
            at_rate("xi = 1, p = 1", whole, [1 - step * low / high / 4 for low, high in spectra], floor=False),
            estimated("floor grows with 1 - xi, exponent", ">", 0.0, found["1 - xi"]),
            estimated("floor grows with kappa, exponent", ">", 0.0, found["kappa"]),
            estimated("floor grows at most as kappa^2, exponent", "<=", 2.0, found["kappa"], exponent=True),
            estimated("floor grows with local steps, exponent", ">", 0.0, found["local steps"]),
            settled([traces(at) for _, settings in changed.values() for at in settings]),
        ],
        panels=[
            Panel(
                f"floors, {width} units, keep {keep:g}",
                "p, 1 - xi, kappa, local steps, or m / 100",
                "squared error",
                {
                    f"{name}, exponent {found[name].value:.2f}": (
                        [value / (100 if name == "m" else 1) for value in values],
                        measured[name].mean(0),
                    )
                    for name, (values, _) in changed.items()
                },
                log="xy",
            )
        ],
        notes=["exponents, floor and B1: " + ", ".join(compared)],
    )
