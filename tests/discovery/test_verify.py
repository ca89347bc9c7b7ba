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


# One of each kind of module and of inputs and outputs; that the plans of all families are right is in test_families.py.
FEW = {"mlp-batch-norm", "mlp-dropout", "mlp-frozen", "shared-block", "two-towers", "two-heads", "resnet18-basic"}
FEW |= {"unet-group-norm", "autoencoder-tied", "gpt", "gpt-nano", "transformer-encoder", "lstm", "gru", "rnn"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, id=f.name, marks=[] if f.name in FEW else [pytest.mark.slow])
        for f in FAMILIES
        if not f.needs and f.name != "mlp-bfloat16"
    ],
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


class TwoInOne(nn.Module):
    """Unit i of one layer must be with unit i of the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out, self.other = (nn.Linear(*sizes) for sizes in ((4, 22), (4, 22), (22, 2), (22, 2)))

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.out(a * b) + self.other(b)


def test_axes_of_one_size_that_must_be_one_are_told_although_each_fits_the_other():
    model = TwoInOne()
    rules = {"a": Out("h"), "b": Out("g"), "out": In("h"), "other": In("g")}
    with pytest.raises(ValueError, match=r"axis '[gh]'.*two that are added must be one axis"):
        verify(model, Plan.from_rules(model, rules), torch.randn(5, 4))
    one = {"a": Out("h"), "b": Out("h"), "out": In("h"), "other": In("h")}
    verify(model, Plan.from_rules(model, one), torch.randn(5, 4))


_HARD = {"a": Out("h"), "b": In("h")}


@pytest.mark.parametrize(
    ("model", "rules", "names"),
    [
        (*_with(nn.LayerNorm(6)), r"\b1\b.*normalized_shape=\[6\]"),
        (*_with(nn.LayerNorm(6, elementwise_affine=False)), r"\b1\b.*normalized_shape=\[6\]"),
        (*_with(nn.GroupNorm(1, 6, affine=False)), r"\b2\b.*\b1e-04\b"),
        (*_with(nn.Softmax(-1)), r"\b2\b.*\b1e-04\b"),
        (*_with(nn.BatchNorm1d(6)), r"\b1\b.*running_mean"),
        (HardCoded(), _HARD, r"\[-1, 2, 3\]"),
        (ByItsWidth(), _HARD, r"\bb\b.*\b1e-04\b"),
        (OnlyInTheGradient(), _HARD, r"\ba\.weight\b.*\b1e-04\b"),
    ],
)  # fmt: skip
def test_wrong_plans_are_named(model, rules, names):
    with pytest.raises(ValueError, match=rf"axis 'h'.*{names}") as error:
        verify(model, Plan.from_rules(model, rules), torch.randn(5, 4))
    assert "\n" not in str(error.value)


def test_a_hard_coded_width_fails_with_the_module_and_the_patch_to_pass():
    torch.manual_seed(0)
    model, x = next(f for f in FAMILIES if f.name == "gpt-nano").build()
    rules = {"h.*.attn.c_attn": Heads("h.*.attn", 6, parts=3), "h.*.attn.c_proj": In("h.*.attn")}
    with pytest.raises(
        ValueError, match=r"axis 'h\.0\.attn'.*\bh\.0\.attn .*skerry\.subnet\.adapters\.nanogpt_attention"
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
    with pytest.raises(ValueError, match=r"axis 'h'.*\b0\b.*\bwidth=6\b.*\bnarrow\.width = "):
        verify(model, Plan.from_rules(model, rules), torch.randn(5, 4))

    def patch(narrow, full):
        narrow.width = narrow.up.weight.shape[0]

    verify(model, Plan.from_rules(model, rules, {"0": patch}), torch.randn(5, 4))
