"""Verification of plans: right plans pass, and each way a plan can be wrong is named with its axis and a remedy."""

import pytest
import torch
from torch import nn

from skerry import In, Out, Plan
from skerry.verify import verify


def test_right_plans_pass(case):
    model, plan, x = case
    verify(model, plan, x)


class HardCoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x).view(-1, 2, 3).flatten(1))


def _with(middle):
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 2)), {"0": Out("h"), "2": In("h")}


@pytest.mark.parametrize(
    ("model", "rules"),
    [
        _with(nn.LayerNorm(6)),
        _with(nn.LayerNorm(6, elementwise_affine=False)),
        _with(nn.GroupNorm(1, 6, affine=False)),
        _with(nn.Softmax(-1)),
        _with(nn.BatchNorm1d(6)),
        (HardCoded(), {"a": Out("h"), "b": In("h")}),
    ],
)  # fmt: skip
def test_wrong_plans_are_named(model, rules):
    with pytest.raises(ValueError, match=r"axis 'h': a narrow subnet.*leave the axis whole") as error:
        verify(model, Plan.from_rules(model, rules), torch.randn(5, 4))
    assert "\n" not in str(error.value)
