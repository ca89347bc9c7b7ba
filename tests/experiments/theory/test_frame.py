"""The frame of the checks: verdicts by hand, estimates against tables and known exponents, masks by counting."""

import math
from itertools import pairwise

import pytest
import torch

from skerry.experiments.theory.frame.fit import exponent, mean, student_quantile
from skerry.experiments.theory.frame.masks import Bernoulli, Categorical
from skerry.experiments.theory.frame.quadratic import dealings
from skerry.experiments.theory.frame.rates import at_rate, over_rate, settled
from skerry.experiments.theory.frame.shallow import shallow
from skerry.experiments.theory.frame.simulate import Trace, outputs, run, trained
from skerry.experiments.theory.frame.table import to_markdown
from skerry.experiments.theory.frame.verdict import Finding, Verdict
from skerry.partitions import Disjoint
from skerry.plan.dims import Axis


@pytest.mark.parametrize(
    ("sense", "measured", "margin", "holds"),
    [
        ("<=", 1.0, 0.0, True),
        ("<=", 1.1, 0.0, False),
        ("<=", 1.1, 0.2, True),  # the interval reaches the bound
        ("<", 0.9, 0.2, False),  # it does not lie below
        ("<", 0.7, 0.2, True),
        (">", 1.1, 0.2, False),
        (">", 1.3, 0.2, True),
        ("<", 1.0 - 1e-15, 0.0, False),  # by rounding
        (">", 1.0 + 1e-15, 0.0, False),
        ("<=", math.nan, 0.0, False),
        ("<", math.nan, 0.0, False),
        (">", math.nan, 0.0, False),
        ("<=", math.inf, 0.0, False),
    ],
)
def test_a_verdict_follows_from_its_numbers(sense, measured, margin, holds):
    assert Verdict("c", sense, 1.0, measured, margin).holds is holds


def test_slack():
    assert Verdict("c", "<=", 6.0, 2.0).slack == 3.0
    assert Verdict("c", ">", 2.0, 6.0).slack == 3.0
    assert Verdict("c", "<=", 0.0, 2.0).slack is None
    assert Verdict("c", "<=", 2.0, 1.0, exponent=True).slack is None


def test_the_table_says_yes_and_no():
    verdicts = [Verdict("a", "<=", 2, 1), Verdict("|b|", "<=", 1, 2, 0.5)]
    lines = to_markdown({"name": Finding(source="s", verdicts=verdicts, panels=[])}).splitlines()
    assert lines[2] == "| `name` | a | ≤ 2 | 1 | 2x | yes |"
    assert lines[3] == r"|  | \|b\| | ≤ 1 | 2 ± 0.5 | 0.5x | **no** |"


@pytest.mark.parametrize(("dof", "quantile"), [(3, 3.182), (4, 2.776), (10, 2.228), (30, 2.042), (10**6, 1.960)])
def test_quantiles_are_those_of_the_tables(dof, quantile):
    assert student_quantile(dof) == pytest.approx(quantile, abs=0.02 if dof == 3 else 0.01)


def test_an_interval_covers_the_mean_19_times_of_20():
    found = [mean(torch.randn(6, dtype=torch.float64)) for _ in range(2000)]
    covered = sum(abs(estimate.value) <= estimate.margin for estimate in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.015)


def test_a_known_exponent_is_found():
    x = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    y = 3 * x**-1.5 * torch.exp(0.01 * torch.randn(8, 4, dtype=torch.float64))
    found = exponent(x, y)
    assert abs(found.value + 1.5) <= 2 * found.margin < 0.05


def test_one_repeat_has_no_interval():
    with pytest.raises(ValueError, match=r"(?=.*\b1\b).*\b2\b"):
        mean(torch.ones(1))


def test_masks_are_drawn_as_said():
    axes = (Axis("a", 4000),)
    held = Bernoulli(3, 0.3, seed=1).assign(axes, 2).held
    assert held.double().mean() == pytest.approx(0.3, abs=0.02)
    assert (held[0] & held[1]).double().mean() == pytest.approx(0.09, abs=0.02)
    assert torch.equal(held, Bernoulli(3, 0.3, seed=1).assign(axes, 2).held)
    assert not torch.equal(held, Bernoulli(3, 0.3, seed=1).assign(axes, 3).held)
    assert Bernoulli(3, 0.3).share(axes, 0).unique().tolist() == [0.3]
    assert Categorical(4).share(axes, 0).unique().tolist() == [0.25]
    dealt = Categorical(4, seed=1).assign(axes, 0).held
    assert bool((dealt.sum(0) == 1).all())
    assert dealt.sum(1).tolist() == pytest.approx([1000] * 4, abs=100)
    with pytest.raises(ValueError, match=r"keep\b.*\b0\.0\b"):
        Bernoulli(3, 0.0)


def test_dealings_are_what_disjoint_draws_from():
    listed = {tuple(a.held.flatten().tolist()) for a in dealings(2, 4)}
    assert len(listed) == math.comb(4, 2)
    drawn = {tuple(Disjoint(2, seed).assign((Axis("c", 4),), 0).held.flatten().tolist()) for seed in range(200)}
    assert drawn == listed
    with pytest.raises(ValueError, match=r"(?=.*\b5\b).*\b2\b"):
        list(dealings(2, 5))


def trace_of(*errors: float) -> Trace:
    return Trace(torch.zeros(len(errors), 1), torch.tensor(errors, dtype=torch.float64), 0.0)


def test_a_rate_is_compared_with_what_falls_to_a_floor():
    rounds = torch.arange(13.0, dtype=torch.float64)
    falls = (0.5**rounds).tolist()
    assert over_rate([trace_of(*falls)], [0.5], floor=False) == pytest.approx(1)
    assert over_rate([trace_of(*falls)], [0.4], floor=False) == pytest.approx((0.5 / 0.4) ** 12)
    to_a_floor = (0.5**rounds + 0.01).tolist()
    assert over_rate([trace_of(*to_a_floor)], [0.5], floor=False) > 10
    assert over_rate([trace_of(*to_a_floor)], [0.5]) == pytest.approx(1, abs=0.02)
    assert over_rate([trace_of(*to_a_floor)], [0.3]) > 2
    assert over_rate([trace_of(1.0, 0.5, 1e-25, 1e-22)], [0.5], floor=False) == 1  # the rest is rounding


def test_what_does_not_fall_is_no_floor():
    assert over_rate([trace_of(*range(1, 14))], [0.5]) == math.inf  # each error is below the last ones
    assert over_rate([trace_of(*[1.0] * 13)], [0.5]) == math.inf
    assert not at_rate("p = 1", [trace_of(1.0, *[math.nan] * 12)], [0.5]).holds
    assert not at_rate("p = 1", [trace_of(1.0, *[math.nan] * 12)], [0.5], floor=False).holds


def test_floors_have_settled_or_not():
    flat, falling = trace_of(9, 5, 3, 1, 1, 1, 1, 1, 1), trace_of(*(0.6**k for k in range(9)))
    assert settled([[flat, flat]]).holds
    assert not settled([[flat, flat], [falling, falling]]).holds
    assert not settled([[flat], [trace_of(*[math.nan] * 9)]]).holds


def test_a_trace_is_of_the_scaled_network_and_of_every_local_step():
    problem, again = shallow(seed=3, width=40), shallow(seed=3, width=40)
    units = Disjoint(2, 0).assign(problem.plan.axes, 0).units(0)
    subnet, losses = trained(problem, units, step=0.1, local=3)
    assert len(losses) == 4
    assert losses[-1] == pytest.approx(float((problem.y - subnet(problem.x).detach()).square().sum()))
    trace = run(again, Disjoint(2, 0), step=0.1, local=3, num_rounds=2)
    torch.testing.assert_close(trace.outputs[0], outputs(problem, torch.full((40,), 0.5)))
    torch.testing.assert_close(trace.outputs[2], 0.5 * again.model(again.x).detach())
    torch.testing.assert_close(trace.errors[2], (again.y - trace.outputs[2]).square().sum())
    assert trace.worst_local >= max(b / a for a, b in pairwise(losses))
