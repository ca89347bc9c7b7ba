"""Every family of the zoo: the axes a careful human expects, and narrow == masked full model, all axes at once."""

import importlib.util
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, bits, dealt_to, doubled, same_bits
from families import FAMILIES, Family
from torch import nn

from skerry import Plan, discover, prune
from skerry.model.inputs import Inputs, call, tensors_of
from skerry.subnet import masked
from skerry.subnet.prune import strongest_units


def _build(family: Family) -> tuple[nn.Module, Inputs]:
    if family.needs and importlib.util.find_spec(family.needs) is None:
        pytest.skip(f"needs {family.needs}")
    torch.manual_seed(0)
    return family.build()


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@cache
def _discovered(name: str) -> tuple[nn.Module, Inputs, Plan]:
    """Once for all tests."""
    (family,) = (family for family in FAMILIES if family.name == name)
    model, inputs = _build(family)
    model.train()
    before, draws = bits(model), torch.get_rng_state()
    plan = discover(model, inputs, patches=family.patches)
    assert same_bits(before, bits(model))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(t.grad is None for t in model.parameters())
    plan.check(model)
    return model, inputs, plan


@cache
def _doubled(name: str) -> tuple[nn.Module, Inputs, Plan]:
    """In double precision; no test changes the model but for its mode."""
    model, inputs, plan = _discovered(name)
    return *doubled(model, inputs), plan


def _pieces(plan: Plan, *workers: int) -> Iterator[torch.Tensor]:
    """The largest and the smallest piece of each number of workers; of two workers this is every unit."""
    for num in workers:
        first, *_, last = dealt_to(plan, num)
        yield from (first, last)


def test_axes_are_those_a_human_expects_and_the_model_is_as_it_was(family):
    _, _, plan = _discovered(family.name)
    assert sorted((axis.kind, axis.num_units) for axis in plan.axes) == sorted(family.axes)
    if family.undealt:
        assert plan.notes


@pytest.mark.parametrize(("training", "workers"), [(False, (2, 3)), (True, (2, 5))], ids=["eval", "train"])
def test_narrow_equals_masked_full_model(family, training, workers):
    model, inputs, plan = _doubled(family.name)
    if not plan.axes:
        pytest.skip("nothing is dealt out")
    for units in _pieces(plan, *workers):
        assert_narrow_equals_masked(model, plan, inputs, units, training=training)


def test_write_back_is_exact(family):
    model, _, plan = _doubled(family.name)
    for units in _pieces(plan, 2, 3, 5) if plan.axes else [torch.empty(0, dtype=torch.int64)]:
        assert_write_back_is_exact(model, plan, units)


@pytest.mark.slow  # any units of any family: see above
def test_the_stronger_half_of_its_units_is_a_model(family):
    model, inputs, plan = _doubled(family.name)
    if not plan.axes:
        pytest.skip("nothing is dealt out")
    units, small = strongest_units(model, plan, 0.5), prune(model.eval(), plan, 0.5)
    assert len(units) == sum(int(0.5 * axis.num_units + 0.5) for axis in plan.axes)
    found, expected = (list(tensors_of(call(net, inputs))) for net in (small, masked(model, plan, units)))
    torch.testing.assert_close(found, expected)
