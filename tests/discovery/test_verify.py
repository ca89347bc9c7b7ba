"""Verification of plans: right plans pass, and each way a plan can be wrong is named with axis, module and remedy."""

import pytest
import torch
from equivalence import bits, same_bits
from families import FAMILIES
from torch import nn

from skerry import Blocks, Plan, discover, verify
from skerry.plan import Heads, In, Out


def test_right_plans_pass(case):
    model, plan, x = case
    verify(model, plan, x)


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if not f.needs and f.name != "mlp-bfloat16"], ids=lambda family: family.name
)
def test_what_is_discovered_passes_and_the_model_is_as_it_was(family):
    torch.manual_seed(0)
    model, inputs = family.build()
    plan = discover(model, inputs, patches=family.patches)
    before = bits(model)
    verify(model, plan, inputs)
    assert same_bits(before, bits(model))
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_half_precision_and_blocks():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(4))).to(torch.bfloat16)
    x = torch.randn(3, 6).to(torch.bfloat16)
    verify(model, Blocks("*").plan(model, x), x)


class HardCoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x).view(-1, 2, 3).flatten(1))


class ByItsWidth(HardCoded):
    def forward(self, x):
        h = self.a(x)
        return self.b(h / h.shape[-1])


class OnlyInTheGradient(HardCoded):
    """The output does not tell: what the units add is detached and taken away again."""

    def forward(self, x):
        h = self.a(x)
        wrong = h.mean(-1, keepdim=True)
        return self.b(h) + (wrong - wrong.detach())


def _with(middle):
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 2)), {"0": Out("h"), "2": In("h")}


_HARD = {"a": Out("h"), "b": In("h")}


@pytest.mark.parametrize(
    ("model", "rules", "words"),
    [
        (*_with(nn.LayerNorm(6)), "does not run, in 1 "),
        (*_with(nn.LayerNorm(6, elementwise_affine=False)), "does not run, in 1 "),
        (*_with(nn.GroupNorm(1, 6, affine=False)), "output differs by"),
        (*_with(nn.Softmax(-1)), "first after 2"),
        (*_with(nn.BatchNorm1d(6)), "does not run, in 1 "),
        (HardCoded(), _HARD, "does not run, in the model itself"),
        (ByItsWidth(), _HARD, "first after b"),
        (OnlyInTheGradient(), _HARD, "gradient of a.weight differs"),
    ],
)  # fmt: skip
def test_wrong_plans_are_named(model, rules, words):
    with pytest.raises(ValueError, match=r"axis 'h': a narrow subnet.*leave the axis whole") as error:
        verify(model, Plan.from_rules(model, rules), torch.randn(5, 4))
    assert "\n" not in str(error.value)
    assert words in str(error.value)


def test_a_hard_coded_width_fails_with_the_module_and_the_patch_to_pass():
    torch.manual_seed(0)
    model, x = next(f for f in FAMILIES if f.name == "gpt-nano").build()
    rules = {"h.*.attn.c_attn": Heads("h.*.attn", 6, parts=3), "h.*.attn.c_proj": In("h.*.attn")}
    with pytest.raises(
        ValueError, match=r"axis 'h\.0\.attn'.*in h\.0\.attn .*skerry\.patches\.nanogpt_attention"
    ) as error:
        verify(model, Plan.from_rules(model, rules), x)
    assert "patches={'h.*.attn': " in str(error.value)
    patches = next(f for f in FAMILIES if f.name == "gpt-nano").patches
    verify(model, Plan.from_rules(model, rules, patches), x)


def test_what_a_module_keeps_is_named_where_no_patch_is_known():
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.up, self.down = 6, nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.down(self.up(x).view(len(x), self.width))

    model = nn.Sequential(Grid())
    rules = {"0.up": Out("h"), "0.down": In("h")}
    with pytest.raises(ValueError, match=r"in 0 .*keeps width=6 of the full model.*narrow\.width = \.\.\."):
        verify(model, Plan.from_rules(model, rules), torch.randn(5, 4))

    def patch(narrow, full):
        narrow.width = narrow.up.weight.shape[0]

    verify(model, Plan.from_rules(model, rules, {"0": patch}), torch.randn(5, 4))
