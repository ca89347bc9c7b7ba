"""The floor of training by Bernoulli masks: which way it goes with workers, keeping, steps and initial scale.

From theorem 3 (``bernoulli_masks.py``) with tau = 1, a step a round: p = 1 is dropout, p > 1 multi-sample dropout,

    B1 = 64 (1-xi)^2 n^3 d / (m lambda_0^2) + 68 eta (theta - xi^2) n^3 kappa^2 / (p lambda_0)
         + (theta - xi^2) n kappa^2 / (6 p):

it falls as p grows, towards its first term; it is 0 at xi = 1 and grows with 1 - xi; it grows with kappa, at most as
kappa^2; it falls with m, towards its other terms. With more local steps it grows. A bound only says "at most": what the
floor itself does is printed as exponents with 95% intervals over problems, beside the bound's.

Source: Liao, Kyrillidis, 2022, arXiv 2112.02668, corollaries of theorem 3 (after the team's summary).

Differs from the paper: eta is half of 1 / lambda_max at each xi. The step therefore shrinks as xi grows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from skerry.theory.bernoulli_masks import floor_bound
from skerry.theory.fit import Estimate, exponent
from skerry.theory.masks import Bernoulli
from skerry.theory.rates import floors, over_rate
from skerry.theory.shallow import limit_kernel, shallow
from skerry.theory.simulate import Trace, extremes, run
from skerry.theory.verdict import Curve, Finding, Panel, Verdict

STEP = 0.5
"""eta in units of 1 / lambda_max(xi H_infinity)."""


def check(
    *,
    seed: int = 0,
    repeats: int = 6,
    width: int = 300,
    num_rounds: int = 24,
    keep: float = 0.5,
    workers: Sequence[int] = (1, 2, 4, 8),
    drops: Sequence[float] = (0.02, 0.1, 0.5),
    kappas: Sequence[float] = (0.5, 1.0, 2.0),
    locals_: Sequence[int] = (1, 2, 4, 8),
    widths: Sequence[int] = (150, 300, 600),
) -> Finding:
    """Measure floors over ``repeats`` problems, changing one thing at a time.

    Args:
        keep: xi, where it is not what changes; at 1 there is no floor that could fall with p.
        drops: values of 1 - xi.
    """

    def traces(m: int = width, p: int = 2, xi: float = keep, tau: int = 1, kappa: float = 1.0) -> list[Trace]:
        found = []
        for s in range(seed, seed + repeats):
            problem = shallow(seed=s, width=m, kappa=kappa)
            eta = STEP / (xi * extremes(limit_kernel(problem.x))[1])
            found.append(run(problem, Bernoulli(p, xi, s), step=eta, local=tau, num_rounds=num_rounds, share=xi))
        return found

    measured = {
        "p": (workers, floors([traces(p=p) for p in workers])),
        "1 - xi": (drops, floors([traces(xi=1 - drop) for drop in drops])),
        "kappa": (kappas, floors([traces(kappa=kappa) for kappa in kappas])),
        "local steps": (locals_, floors([traces(tau=tau) for tau in locals_])),
        "m": (widths, floors([traces(m=m) for m in widths])),
    }
    spectra = [extremes(limit_kernel(shallow(seed=s, width=1).x)) for s in range(seed, seed + repeats)]
    whole = over_rate(traces(xi=1.0), [1 - STEP * low / high / 4 for low, high in spectra], floor=False)
    x = shallow(seed=seed, width=width).x
    low, high = extremes(limit_kernel(x))

    def bound(m: int = width, p: int = 2, xi: float = keep, tau: int = 1, kappa: float = 1.0) -> float:
        n, d = x.shape
        eta = STEP / (xi * high)
        return floor_bound(n=n, d=d, m=m, xi=xi, p=p, tau=tau, eta=eta, lambda_0=xi * low, kappa=kappa)

    bounds = {
        "p": [bound(p=p) for p in workers],
        "1 - xi": [bound(xi=1 - drop) for drop in drops],
        "kappa": [bound(kappa=kappa) for kappa in kappas],
        "local steps": [bound(tau=tau) for tau in locals_],
        "m": [bound(m=m) for m in widths],
    }
    found = {name: exponent(_float(values), each) for name, (values, each) in measured.items()}
    of_bound = {name: slope(values, bounds[name]) for name, (values, _) in measured.items()}
    return Finding(
        source="arXiv 2112.02668, corollaries of theorem 3",
        verdicts=[
            _direction("floor falls with the samples p, exponent", found["p"], "<"),
            Verdict(claim="xi = 1: worst error over rate^k, no floor", bound=1.0, measured=whole),
            _direction("floor grows with 1 - xi, exponent", found["1 - xi"], ">"),
            _direction("floor grows with kappa, exponent", found["kappa"], ">"),
            Verdict(
                claim="floor grows at most as kappa^2, exponent",
                bound=2.0,
                measured=found["kappa"].value,
                margin=found["kappa"].margin,
                exponent=True,
            ),
            _direction("floor grows with local steps, exponent", found["local steps"], ">"),
        ],
        panels=[
            Panel(
                title=f"floors, {width} units, keep {keep:g}",
                xlabel="p, 1 - xi, kappa, local steps, or m / 100",
                ylabel="squared error",
                curves=[
                    Curve(
                        f"{name}, exponent {found[name].value:.2f}",
                        [value / (100 if name == "m" else 1) for value in values],
                        each.mean(0).tolist(),
                    )
                    for name, (values, each) in measured.items()
                ],
                log="xy",
            )
        ],
        notes=[
            "exponents, floor and B1: "
            + ", ".join(
                f"{name} {found[name].value:.2f} ± {found[name].margin:.2f} and {of_bound[name]:.2f}" for name in found
            )
        ],
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y on log x."""
    log_x = _float(x).log() - _float(x).log().mean()
    return float((_float(y).log() @ log_x) / log_x.square().sum())


def _float(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _direction(claim: str, found: Estimate, sense: str) -> Verdict:
    return Verdict(
        claim=claim, bound=0.0, measured=found.value, margin=found.margin, sense="<" if sense == "<" else ">"
    )
