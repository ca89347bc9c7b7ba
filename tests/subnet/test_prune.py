"""Pruning: against norms taken by hand, and what it refuses. Every family is pruned in ``test_families.py``."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import skerry
from skerry import Plan
from skerry.plan.rules import In, Out
from skerry.subnet.prune import unit_norms
from skerry.subnet.side_by_side import side_by_side


def mlp(width=6):
    model = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))
    return model, Plan.from_rules(model, {"0": Out("h"), "1": Out("h"), "3": In("h")})


def test_the_filters_with_the_largest_norms_stay():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    plan = skerry.discover(model, torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([9.0, 0, 0, 0, 9.0]))  # biases do not count
        model[0].weight *= (
            torch.tensor([1.0, 4, 2, 5, 3])[:, None, None, None]
            / model[0].weight.flatten(1).norm(dim=1)[:, None, None, None]
        )
    torch.testing.assert_close(unit_norms(model, plan).float(), torch.tensor([1.0, 4, 2, 5, 3]))
    small = skerry.prune(model, plan, 0.4)
    assert torch.equal(small[0].weight, model[0].weight[[1, 3]])
    assert torch.equal(small[2].weight, model[2].weight[:, [1, 3]])


def test_a_head_counts_with_all_its_projections():
    model = nn.TransformerEncoderLayer(12, 4, dim_feedforward=6, batch_first=True)
    plan = skerry.discover(model, torch.randn(2, 5, 12)).only("self_attn*")
    by_head = model.self_attn.in_proj_weight.view(3, 4, 3, 12).square().sum((0, 2, 3)).sqrt()  # of all three
    torch.testing.assert_close(unit_norms(model, plan).float(), by_head.detach())
    assert skerry.prune(model, plan, 0.5).self_attn.num_heads == 2


def test_a_weight_norm_counts_as_what_it_computes():
    model = nn.Sequential(weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].parametrizations.weight.original1 *= torch.arange(1.0, 7)[:, None]  # changes nothing
    plan = skerry.discover(model, torch.randn(4, 8))
    torch.testing.assert_close(unit_norms(model, plan).float(), model[0].weight.norm(dim=1).detach())


def test_fractions_by_axis():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    plan = Plan.from_rules(model, {"0": Out("a.x"), "2": [In("a.x"), Out("a.y")], "4": In("a.y")})
    widths = lambda keep: [layer.out_features for layer in skerry.prune(model, plan, keep)[::2]]  # noqa: E731
    assert widths({"a.y": 0.5}) == [6, 5, 4]
    assert widths({"*": 0.5, "a.y": 0.2}) == [3, 2, 4]
    assert widths(0.25) == [2, 3, 4]  # rounded: 1.5, 2.5
    assert widths(1) == [6, 10, 4]


def test_what_has_nothing_to_prune_is_refused():
    model, plan = mlp()
    with pytest.raises(ValueError, match="nothing can be pruned; print"):
        skerry.prune(model, Plan.whole(model), 0.5)
    nets, of_nets = side_by_side(model, plan, [torch.arange(3), torch.arange(3, 6)])
    with pytest.raises(ValueError, match=r"prune each of model\.nets"):
        skerry.prune(nets, of_nets, 0.5)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0.05, r"keep=0\.05: leaves no unit of axis 'h' \(6 units\), expected at least 0\.08"),
        (0, "keep=0: expected a fraction above 0, at most 1"),
        (1.5, "keep=1.5"),
        (True, "keep=True"),
        (math.nan, "keep=nan"),
        ("half", "keep='half'"),
        ({"h": 2}, "keep=2"),
        ({"i": 0.5}, "'i' matches no axis.*h"),
        ({}, "keep={}: names no axis"),
    ],
)
def test_what_leaves_nothing_or_makes_no_sense_is_refused_in_one_line(keep, message):
    model, plan = mlp()
    with pytest.raises(ValueError, match=message) as told:
        skerry.prune(model, plan, keep)
    assert "\n" not in str(told.value)


def test_without_weights_to_go_by_it_is_refused():
    model, plan = mlp()
    nn.init.zeros_(model[0].weight)
    with pytest.raises(ValueError, match="axis 'h': the weights of its units are all 0"):
        skerry.prune(model, plan, 0.5)
    assert skerry.prune(model, plan, 1.0)[0].out_features == 6
    with pytest.raises(ValueError, match=r"0\.weight: the model has shape \(7, 8\), the plan shape \(6, 8\)"):
        skerry.prune(mlp(7)[0], plan, 0.5)


def test_blocks_count_with_all_their_weights():
    class Block(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = nn.Sequential(nn.Linear(8, 5), *(Block(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5)) for _ in range(3)))
    with torch.no_grad():
        model[2][2].weight += 3
    x = torch.randn(4, 8)
    plan = skerry.Blocks("[123]").plan(model, x)
    small = skerry.prune(model, plan, 0.34)
    torch.testing.assert_close(small(x), model[2](model[0](x)))
