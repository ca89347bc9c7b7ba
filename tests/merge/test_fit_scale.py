"""The fitted scale, against models whose scale is known to be wrong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from zoo import CASES

from skerry.merge import fit_scale
from skerry.model.inputs import call, tensors_of
from skerry.model.tensors import named_tensors


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))


def samples(model, num=128):
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(1))
    return x, model(x).detach()


def test_a_wrong_scale_is_found():
    from skerry import discover

    model = net()
    x, y = samples(model)
    plan = discover(model, x)
    wrong = net()
    with torch.no_grad():
        wrong[2].weight.mul_(0.25)
        wrong[4].weight.mul_(3.0)
    fitted = fit_scale(wrong, plan, F.mse_loss, [(x[:64], y[:64]), (x[64:], y[64:])], steps=200)
    assert F.mse_loss(fitted(x), y) < 0.01 * F.mse_loss(wrong(x), y)
    torch.testing.assert_close(fitted[2].weight, model[2].weight, rtol=0.1, atol=0.01)
    assert torch.equal(fitted[0].weight, wrong[0].weight)  # reads no dealt unit
    assert torch.equal(wrong[2].weight, 0.25 * model[2].weight)  # what was given is left alone


@given(st.sampled_from(CASES), st.integers(0, 2**16))
def test_the_loss_on_the_batches_never_becomes_higher(case, seed):
    torch.manual_seed(seed)
    model, plan, inputs = case.build()
    model.eval()

    def outputs(m):
        return torch.cat([t.flatten() for t in tensors_of(call(m, inputs))])

    target = torch.randn_like(outputs(model))

    def loss(output, labels):
        return (torch.cat([t.flatten() for t in tensors_of(output)]) - labels).square().mean()

    with torch.no_grad():
        before = float(loss(call(model, inputs), target))
    fitted = fit_scale(model, plan, loss, [(inputs, target)], steps=3)
    with torch.no_grad():
        assert float(loss(call(fitted, inputs), target)) <= before * (1 + 1e-5)
    reads = {n for n, row in plan.dims.items() if any(dim and dim.role == "in" for dim in row)}
    for name, tensor in named_tensors(fitted).items():
        if name not in reads:
            assert torch.equal(tensor, named_tensors(model)[name]), name


def test_no_batches_and_a_loss_that_is_not_finite_are_refused():
    from skerry import discover

    model = net()
    x, y = samples(model)
    plan = discover(model, x)
    with pytest.raises(ValueError, match="batches: got none"):
        fit_scale(model, plan, F.mse_loss, [])
    with pytest.raises(ValueError, match="not finite"):
        fit_scale(model, plan, F.mse_loss, [(x * float("nan"), y)])
