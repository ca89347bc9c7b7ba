"""Every theorem holds at small sizes, and no verdict is safe: with one assumption broken it turns.

Bounds are the papers' (or derived in the file of the theorem); constants are computed there, never fitted to a run.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from skerry import Disjoint, Overlapping, aggregate_
from skerry.theory import (
    THEOREMS,
    aggregation_identity,
    asyncdrop,
    bernoulli_masks,
    categorical_masks,
    counterexample,
    gist,
    irreducible_bias,
    local_decrease,
    loft,
    mask_corollaries,
    masked_kernel,
    one_worker,
    quadratic,
    quadratic_rate,
    resist,
    scaled_sketch,
    stationarity,
    zeroed_units,
)
from skerry.theory.quadratic import permutation
from skerry.theory.zeroed_units import zero_unheld_

SMALL = {
    "aggregation-identity": {"width": 60, "local": 3, "num_rounds": 2},
    "masked-kernel": {"width": 200, "draws": 20},
    "one-worker": {"width": 60, "local": 3, "num_rounds": 2},
    "local-decrease": {"width": 300, "num_rounds": 4, "local": 3},
    "bernoulli-masks": {"repeats": 4, "width": 120, "num_rounds": 15, "workers": 2, "local": 2},
    "mask-corollaries": {
        "repeats": 4,
        "width": 120,
        "num_rounds": 15,
        "workers": (1, 8),
        "drops": (0.02, 0.5),
        "kappas": (1.0, 4.0),
        "locals_": (1, 8),
        "widths": (60, 120),
    },
    "zeroed-units": {"repeats": 4, "width": 80, "num_rounds": 20},
    "categorical-masks": {
        "repeats": 4,
        "width": 120,
        "widths": (120, 480),
        "workers": (2, 5),
        "num_rounds": 12,
        "local": 3,
    },
    "quadratic-rate": {"runs": 8, "num_rounds": 12},
    "counterexample": {},
    "scaled-sketch": {"runs": 3, "num_rounds": 10},
    "irreducible-bias": {"runs": 10, "num_rounds": 30},
    "stationarity": {"runs": 4, "num_rounds": 40},
    "gist": {"repeats": 4, "width": 120, "subnets": (2,), "kappas": (1.0, 16.0), "num_rounds": 20, "local": 5},
    "loft": {"repeats": 4, "filters": 80, "workers": (1, 4), "drops": (0.02, 0.5), "num_rounds": 12, "local": 2},
    "resist": {"repeats": 4, "depths": (4,), "width": 24, "workers": (2,), "num_rounds": 12},
    "asyncdrop": {"repeats": 4, "width": 60, "delays": (0, 8), "drops": (0.02, 0.5), "num_steps": 30, "local": 3},
}


def test_every_theorem_is_here():
    assert set(SMALL) == set(THEOREMS)


@pytest.mark.parametrize("name", SMALL)
def test_it_holds(name):
    finding = THEOREMS[name](**SMALL[name])
    assert finding.verdicts
    assert [v.claim for v in finding.verdicts if not v.holds] == []
    for panel in finding.panels:
        assert all(len(curve.x) == len(curve.y) for curve in panel.curves)


BROKEN = {
    "units averaged over two holders": (
        aggregation_identity,
        "aggregation-identity",
        {"partition": Overlapping(3, 2)},
        "both sides agree",
    ),
    "a core that all hold": (masked_kernel, "masked-kernel", {"partition": Disjoint(4, core=0.3)}, "mean kernel"),
    "width too small for a kernel": (masked_kernel, "masked-kernel", {"width": 12}, "smallest eigenvalue"),
    "masks that are not full": (one_worker, "one-worker", {"keep": 0.8}, "workers with full masks"),
    "step too large": (local_decrease, "local-decrease", {"step": 3.0}, "disjoint masks: least"),
    "width too small": (local_decrease, "local-decrease", {"width": 16}, "disjoint masks: least"),
    "units zeroed, local steps": (
        local_decrease,
        "local-decrease",
        {"width": 100, "num_rounds": 20, "aggregate": zero_unheld_},
        "Bernoulli masks: least",
    ),
    "step too large, Bernoulli": (bernoulli_masks, "bernoulli-masks", {"step": 3.0}, "worst error over rate"),
    "units zeroed, Bernoulli": (bernoulli_masks, "bernoulli-masks", {"aggregate": zero_unheld_}, "does not rise"),
    "nothing masked, nothing to gain by samples": (
        mask_corollaries,
        "mask-corollaries",
        {"keep": 1.0, "repeats": 2},
        "falls with the samples",
    ),
    "units kept after all": (zeroed_units, "zeroed-units", {"rule": aggregate_}, "zeroed over kept"),
    "step too large, categorical": (categorical_masks, "categorical-masks", {"step": 4.0, "repeats": 2}, "p = 1:"),
    "width too small, categorical": (
        categorical_masks,
        "categorical-masks",
        {"width": 2, "widths": (2, 4), "workers": (2,), "repeats": 2},
        "p = 1:",
    ),
    "linear terms": (quadratic_rate, "quadratic-rate", {"linear": 1.0}, "rate^k"),
    "step too large, quadratics": (quadratic_rate, "quadratic-rate", {"step": 4.0}, "rate^k"),
    "coupling below the threshold": (counterexample, "counterexample", {"over": 0.9}, "f rises"),
    "a sketch that is not scaled": (scaled_sketch, "scaled-sketch", {"sketch": permutation}, "distance of Wbar"),
    "linear terms, scaled sketch": (scaled_sketch, "scaled-sketch", {"linear": 1.0}, "worst gap"),
    "no linear terms, no bias": (irreducible_bias, "irreducible-bias", {"linear": 0.0}, "above zero"),
    "another sketch, another limit": (
        irreducible_bias,
        "irreducible-bias",
        {"sketch": permutation, "step": 0.1},
        "distance of the mean iterate",
    ),
    "step too large, stationarity": (stationarity, "stationarity", {"step": 4.0}, "all rounds"),
    "no linear terms, no bias that stays": (stationarity, "stationarity", {"linear": 0.0}, "its share"),
    "step too large, GIST": (gist, "gist", {"step": 4.0, "repeats": 2}, "m = 1:"),
    "width too small, GIST": (gist, "gist", {"width": 2, "subnets": (2,), "repeats": 2}, "m = 1:"),
    "step too large, LoFT": (loft, "loft", {"step": 5.0, "repeats": 2}, "xi = 1: worst"),
    "nothing masked, LoFT": (loft, "loft", {"keep": 1.0, "repeats": 2}, "floor falls with p"),
    "branches not scaled, ResIST": (resist, "resist", {"scaled": False, "repeats": 2}, "floor over"),
    "step too large, ResIST": (resist, "resist", {"step": 8.0, "repeats": 2}, "S = 1:"),
    "step too large, AsyncDrop": (asyncdrop, "asyncdrop", {"step": 8.0, "alpha": 1.0, "repeats": 2}, "xi = 1, E = 0:"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_without_an_assumption_the_verdict_turns(broken):
    module, name, change, claim = BROKEN[broken]
    verdicts = module.check(**{**SMALL[name], **change}).verdicts
    (about,) = [v for v in verdicts if claim in v.claim]
    assert not about.holds


def test_every_theorem_is_broken_somewhere():
    assert {name for _, name, _, _ in BROKEN.values()} == set(THEOREMS)


def test_the_limit_kernel_is_the_mean_over_random_units():
    x = F.normalize(torch.randn(4, 3, dtype=torch.float64)) * torch.tensor([[1.0], [2.0], [0.5], [1.0]])
    w = torch.randn(200_000, 3, dtype=torch.float64)
    on = (x @ w.T > 0).double()
    torch.testing.assert_close(
        masked_kernel.limit_kernel(x), (x @ x.T) * (on @ on.T) / len(w), rtol=0, atol=4 * 4 / math.sqrt(len(w))
    )


def test_b1_is_as_written_by_hand():
    # tau = 1 and p = 1: C1 is multiplied by 0; theta = xi.
    n, d, m, xi, eta, low = 3, 2, 7, 0.25, 0.5, 0.1
    by_hand = 64 * 0.5625 * 27 * 2 / (7 * 0.01) + 68 * 0.5 * (0.25 - 0.0625) * 27 / 0.1 + (0.25 - 0.0625) * 3 / 6
    found = bernoulli_masks.floor_bound(n=n, d=d, m=m, xi=xi, p=1, tau=1, eta=eta, lambda_0=low)
    assert found == pytest.approx(by_hand)
    # one worker that keeps all has no floor
    assert bernoulli_masks.floor_bound(n=n, d=d, m=m, xi=1.0, p=1, tau=5, eta=eta, lambda_0=low) == 0


def test_theta_is_the_least():
    problem = quadratic_rate.random_quadratics(3, 3, 6, linear=1.0)
    exact = quadratic_rate.moments(problem, permutation)
    lbar, found = problem.mean_curvature, []
    for assignment in quadratic.dealings(3, 6):
        b = torch.zeros(6, 6, dtype=torch.float64)
        for worker in range(3):
            p = torch.diag(assignment.held[worker].double())
            b += 3 * p @ problem.curvature[worker] @ p
        found.append(b @ lbar @ b)
    gap = torch.linalg.eigvalsh(exact.theta * exact.symmetric - torch.stack(found).mean(0))
    assert gap[0] == pytest.approx(0, abs=1e-9)
    assert gap[-1] > 0
