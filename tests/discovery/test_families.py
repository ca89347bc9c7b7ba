"""Every family of the zoo: the axes a careful human expects, and narrow == masked full model, all axes at once."""

import importlib.util

import pytest
import torch
from equivalence import (
    assert_narrow_equals_masked,
    assert_write_back_is_exact,
    bits,
    dealt_to,
    doubled,
    same_bits,
)
from families import FAMILIES, Family
from torch import nn

from skerry import Plan, discover
from skerry.inputs import Inputs


def _build(family: Family) -> tuple[nn.Module, Inputs]:
    if family.needs and importlib.util.find_spec(family.needs) is None:
        pytest.skip(f"needs {family.needs}")
    torch.manual_seed(0)
    return family.build()


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


def _found(family: Family) -> tuple[nn.Module, Inputs, Plan]:
    model, inputs = doubled(*_build(family))
    return model, inputs, discover(model, inputs, patches=family.patches)


def test_axes_are_those_a_human_expects_and_the_model_is_as_it_was(family):
    model, inputs = _build(family)
    model.train()
    before, forwards = bits(model), torch.get_rng_state()
    plan = discover(model, inputs, patches=family.patches)
    assert sorted((axis.kind, axis.num_units) for axis in plan.axes) == sorted(family.axes)
    assert same_bits(before, bits(model))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), forwards)
    assert all(t.grad is None for t in model.parameters())
    plan.check(model)
    if family.undealt:
        assert plan.notes


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_narrow_equals_masked_full_model(family, training):
    model, inputs, plan = _found(family)
    if not plan.axes:
        pytest.skip("nothing is dealt out")
    for workers in (2, 3, 5):
        for units in dealt_to(plan, workers):
            assert_narrow_equals_masked(model, plan, inputs, units, training=training)


def test_write_back_is_exact(family):
    model, _, plan = _found(family)
    for workers in (2, 3, 5):
        for units in dealt_to(plan, workers) if plan.axes else [torch.empty(0, dtype=torch.int64)]:
            assert_write_back_is_exact(model, plan, units)
