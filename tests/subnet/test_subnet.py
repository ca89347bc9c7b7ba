"""Subnets: narrow == masked full model (outputs, gradients); extract then write back is the identity, to the bit."""

import copy

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, bits, dealt_to, doubled, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import cnn, mlp

from skerry import Plan, discover
from skerry.partitions import Disjoint
from skerry.subnet import extract, masked, write_back
from skerry.subnet.extract import narrow_model
from skerry.subnet.index import Index
from skerry.subnet.slicing import put_, take


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_narrow_equals_masked_full_model_in_outputs_and_gradients(case, workers, training):
    model, plan, x = case
    model, x = doubled(model, x)
    for units in dealt_to(plan, workers):
        assert_narrow_equals_masked(model, plan, x, units, training=training, tolerance=1e-10)


def test_extract_then_write_back_is_the_identity_to_the_bit_and_writes_only_what_is_held(case):
    model, plan, _ = case
    with torch.no_grad():  # bits that arithmetic would lose
        for parameter in model.parameters():
            parameter.view(-1)[0] = -0.0
    everything, nothing = torch.arange(plan.num_units), torch.tensor([], dtype=torch.int64)
    for units in (nothing, everything, everything[1::3], everything[: plan.num_units // 2], *dealt_to(plan, 3)):
        assert_write_back_is_exact(model, plan, units)


def test_the_subnet_is_real_and_its_widths_agree():
    model, plan, x = cnn()
    units = Disjoint(2).assign(plan.axes, 0).units(0)
    subnet = extract(model, plan, units)
    assert (subnet.convs[1].in_channels, subnet.convs[1].out_channels) == tuple(subnet.convs[1].weight.shape[1::-1])
    assert subnet.norms[1].num_features == subnet.convs[1].out_channels
    assert subnet.hidden.in_features == 4 * subnet.convs[1].out_channels
    assert sum(p.numel() for p in subnet.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    assert all(p.is_leaf and p.requires_grad for p in subnet.parameters())
    subnet(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_ties_stay_tied_and_frozen_stays_frozen():
    from zoo import tied

    model, plan, _ = tied()
    model.first.bias.requires_grad_(False)
    subnet = extract(model, plan, torch.tensor([0, 4]))
    assert subnet.left.weight is subnet.right.weight
    assert not subnet.first.bias.requires_grad


@settings(max_examples=60)
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_any_units_of_any_mlp(hidden, dtype, data):
    model, plan, x = mlp(hidden=tuple(hidden))
    model.to(dtype).eval()
    units = sorted(data.draw(st.sets(st.integers(0, plan.num_units - 1))))
    for axis in plan.axes:  # no layer may be empty
        if not any(axis.start <= u < axis.start + axis.num_units for u in units):
            units.append(axis.start)
    chosen = torch.tensor(sorted(units))
    before = bits(model)
    subnet = extract(model, plan, chosen)
    write_back(model, plan, chosen, subnet)
    assert same_bits(before, bits(model))
    if dtype == torch.float64:
        torch.testing.assert_close(subnet(x.double()), masked(model, plan, chosen)(x.double()), rtol=1e-10, atol=1e-10)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_take_and_put_against_plain_indexing(shape, data):
    tensor = torch.arange(torch.tensor(shape).prod()).view(shape).double()
    cut = tuple(
        data.draw(st.none() | st.sets(st.integers(0, n - 1)).map(lambda s: Index(torch.tensor(sorted(s)).long())))
        for n in shape
    )
    index = [range(n) if i is None else i.ids.tolist() for n, i in zip(shape, cut, strict=True)]
    part = take(tensor, cut)
    expected = tensor.clone()
    for d, i in enumerate(index):
        expected = expected[(slice(None),) * d + (list(i),)]
    assert torch.equal(part, expected)
    target = torch.zeros_like(tensor)
    put_(target, part, cut)
    inside = torch.ones_like(tensor, dtype=torch.bool)
    for d, i in enumerate(index):
        outside = [k for k in range(shape[d]) if k not in set(i)]
        inside[(slice(None),) * d + (outside,)] = False
    assert torch.equal(target, torch.where(inside, tensor, 0))


def test_narrow_model_is_initialized_as_a_net_of_its_width():
    model, plan, x = mlp(hidden=(64, 64))
    small = narrow_model(model, plan, 0.25, seed=1)
    assert small.layers[1].weight.shape == (16, 16)
    assert small.layers[1].weight.abs().max() > 0.9 * 16**-0.5  # the bound of its own fan-in, not of 64
    again = narrow_model(copy.deepcopy(model), plan, 0.25, seed=1)
    assert same_bits(bits(small), bits(again))
    assert small(x).shape == (16, 4)
    assert Plan.whole(small).num_units == 0


def test_a_narrow_model_is_initialized_by_the_models_own_rule():
    class Own(nn.Sequential):
        """As transformers and nanoGPT write it."""

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    model = Own(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    model[2].weight.requires_grad_(False)
    small = narrow_model(model, discover(model, torch.randn(2, 8)), 0.5, seed=1)
    assert float(small[0].weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(small[2].weight, model[2].weight[:, :32])
