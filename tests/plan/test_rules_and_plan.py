"""Plans from rules: checked against tables written out by hand, and against the errors a user can make."""

import pytest
import torch
from torch import nn
from zoo import TiedAutoencoder, cnn, mlp

from skerry import Plan
from skerry.experiments.models.mlp import MLP
from skerry.plan import In, Out


def test_table_of_an_mlp_by_hand():
    model = MLP([3, 4, 2, 5])
    plan = Plan.from_rules(
        model,
        {
            "layers.0": Out("a"),
            "norms.0": Out("a"),
            "layers.1": [In("a"), Out("b")],
            "norms.1": Out("b"),
            "out": In("b"),
        },
    )
    assert [(a.name, a.num_units, a.start) for a in plan.axes] == [("a", 4, 0), ("b", 2, 4)]
    table = {
        name: [None if d is None else (d.role, d.units.tolist()) for d in dims] for name, dims in plan.dims.items()
    }
    a, b = ("out", [0, 1, 2, 3]), ("out", [4, 5])
    assert table == {
        "layers.0.weight": [a, None],
        "norms.0.weight": [a], "norms.0.bias": [a], "norms.0.running_mean": [a], "norms.0.running_var": [a],
        "layers.1.weight": [b, ("in", [0, 1, 2, 3])],
        "norms.1.weight": [b], "norms.1.bias": [b], "norms.1.running_mean": [b], "norms.1.running_var": [b],
        "out.weight": [None, ("in", [4, 5])],
    }  # fmt: skip


def test_flatten_gives_neighbouring_columns_to_a_channel():
    _, plan, _ = cnn()
    columns = plan.dims["hidden.weight"][1]
    c1 = next(a for a in plan.axes if a.name == "c1")
    assert columns.units.tolist() == [c1.start + i // 4 for i in range(7 * 4)]
    assert c1.kind == "channels"


def test_stars_carry_over_to_the_axis_name():
    model = nn.ModuleDict({"b": nn.ModuleList([nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)) for _ in range(2)])})
    plan = Plan.from_rules(model, {"b.*.0": Out("b.*.h"), "b.*.1": In("b.*.h")})
    assert [a.name for a in plan.axes] == ["b.0.h", "b.1.h"]


def test_print_names_every_axis_and_the_share_dealt_out():
    text = str(mlp()[1])
    assert "h0" in text
    assert "h1" in text
    for figure in ("379", "385", "98%"):
        assert figure in text


def _two_layers(hidden: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 2))


@pytest.mark.parametrize(
    ("model", "rules", "words"),
    [
        (_two_layers(), {"0": Out("h"), "1": Out("h"), "2": In("h")}, ["1 (LayerNorm)", "'h'", "BatchNorm"]),
        (_two_layers(), {"0": Out("h")}, ["(Out)", "In('h')"]),
        (_two_layers(), {"2": In("h")}, ["(In)", "Out('h')"]),
        (_two_layers(), {"O": Out("h")}, ["'O'", "0, 1, 2"]),
        (_two_layers(), {"0": Out("*.h"), "2": In("h")}, ["'0'", "'*.h'"]),
        (
            MLP([3, 4, 5, 2]), {"layers.0": Out("h"), "norms.1": Out("h"), "out": In("h")},
            ["norms.1.weight", "'h'", "layers.0.weight", " 5 ", " 4 "],
        ),
        (MLP([3, 4, 5, 2]), {"layers.0": Out("h"), "out": In("h")}, ["out.weight", "'h'", " 1", " 5 ", " 4 "]),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1)), {"0": Out("c"), "1": In("c")}, ["groups=2"]),
        (nn.Sequential(nn.GRU(3, 4)), {"0": Out("h")}, ["0 (GRU)", "Out('h')"]),
        (TiedAutoencoder(4), {"first": Out("h"), "left": In("h")}, ["right.weight", "left.weight"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), {"0": [Out("a"), In("b")], "1": In("a")}, ["'b'"]),
    ],
)  # fmt: skip
def test_wrong_rules_are_refused_in_one_line_that_names_the_place(model, rules, words):
    with pytest.raises(ValueError, match=r".") as error:
        Plan.from_rules(model, rules)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_one_dim_in_two_roles_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1\.weight.*'b'.*'a'.*0\.weight"):
        Plan.from_rules(model, {"0": Out("a"), "1": [In("a"), Out("b")], "2": In("b")})


def test_a_plan_refuses_another_model():
    _, plan, _ = mlp()
    with pytest.raises(ValueError, match=r"layers\.0\.weight.*\(12, 9\).*\(13, 9\)"):
        plan.check(MLP([9, 12, 10, 4]))
    with pytest.raises(ValueError, match=r"norms\.0\.weight.*\(13,\)"):
        plan.check(MLP([9, 13, 10, 4], norm=False))


def test_layer_norm_over_an_undealt_dim_is_fine(case):
    model, plan, _ = case
    plan.check(model)
    assert all(int(d.units.max()) < plan.num_units for dims in plan.dims.values() for d in dims if d is not None)
    assert torch.equal(
        torch.cat([torch.arange(a.start, a.start + a.num_units) for a in plan.axes]), torch.arange(plan.num_units)
    )
