"""Plans edited, added and kept in files: what comes back is what was written, and other models are refused."""

import json
from dataclasses import replace

import pytest
import torch
from equivalence import assert_narrow_equals_masked, dealt_to, doubled
from families import FAMILIES
from torch import nn
from zoo import cnn, mlp

from skerry import Blocks, Plan, discover
from skerry.experiments.models.mlp import MLP
from skerry.plan import Heads, In, Out, load_plan, save_plan
from skerry.subnet.adapters import nanogpt_attention


def _same(a: Plan, b: Plan) -> bool:
    rows = a.dims.keys() == b.dims.keys() and all(
        (x is None and y is None) or (x is not None and y is not None and x.role == y.role and x.units.equal(y.units))
        for name in a.dims
        for x, y in zip(a.dims[name], b.dims[name], strict=True)
    )
    return rows and (a.axes, a.shapes, a.blocks, a.scaled, a.notes) == (b.axes, b.shapes, b.blocks, b.scaled, b.notes)


@pytest.mark.parametrize("name", ["vgg", "resnext", "gpt", "llama", "densenet", "unet-group-norm", "wavenet"])
def test_a_plan_comes_back_from_its_file(name, tmp_path):
    torch.manual_seed(0)
    model, inputs = next(f for f in FAMILIES if f.name == name).build()
    plan = discover(model, inputs)
    save_plan(plan, tmp_path / "plan.json")
    assert _same(plan, load_plan(tmp_path / "plan.json", model))
    assert (tmp_path / "plan.json").stat().st_size < 100_000


def test_blocks_come_back_too(tmp_path):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    plan = discover(model, torch.randn(2, 4), blocks=Blocks("*", branch="0"))
    save_plan(plan, tmp_path / "plan.json")
    assert _same(plan, load_plan(tmp_path / "plan.json", model))
    assert plan.blocks
    assert plan.scaled


def test_patches_are_asked_for_again(tmp_path):
    model, plan, _ = mlp()
    save_plan(replace(plan, patches={"layers.*": nanogpt_attention}), tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"plan\.json.*'layers\.\*'.*\bpatches="):
        load_plan(tmp_path / "plan.json", model)
    loaded = load_plan(tmp_path / "plan.json", model, {"layers.*": nanogpt_attention})
    assert loaded.patches == {"layers.*": nanogpt_attention}


def test_a_plan_refuses_a_model_it_does_not_fit_and_names_the_tensor(tmp_path):
    _, plan, _ = mlp()
    save_plan(plan, tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"layers\.0\.weight.*\(12, 9\).*\(13, 9\)"):
        load_plan(tmp_path / "plan.json", MLP([9, 12, 10, 4]))


def _with_units(content: dict, units: list) -> dict:
    return {**content, "dims": {**content["dims"], "out.weight": [None, {"role": "in", "units": units}]}}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda c: "{", "line 1 column 2"),
        (lambda c: json.dumps([1]), r"'list'.*'skerry plan 1'"),
        (lambda c: json.dumps({**c, "format": "skerry plan 9"}), r"'skerry plan 9'.*'skerry plan 1'"),
        (lambda c: json.dumps({k: v for k, v in c.items() if k != "axes"}), "'axes'"),
        (lambda c: json.dumps(_with_units(c, [[13, 1, 9]])), r"out\.weight\b.*\(4, 9\).*\(4, 10\)"),
        (lambda c: json.dumps(_with_units(c, [[99, 0, 10]])), r"out\.weight\b(?!.*\(4, )"),
        (lambda c: json.dumps({**c, "blocks": {"layers": 99}}), r"\blayers\b.*\b99\b"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_in_one_line(change, names, tmp_path):
    model, plan, _ = mlp()
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=rf"plan\.json.*{names}") as error:
        load_plan(path, model)
    assert "\n" not in str(error.value)


def test_only_without_and_sum():
    model, plan, x = cnn()
    first, rest = plan.only("c0"), plan.without("c0")
    assert [a.name for a in first.axes] == ["c0"]
    assert [(a.name, a.start) for a in rest.axes] == [("c1", 0), ("h", 7)]
    assert any("c0" in note.what for note in rest.notes)
    both = first + rest
    assert [a.name for a in both.axes] == ["c0", "c1", "h"]
    assert _same(replace(both, notes=()), plan)
    model, x = doubled(model, x)
    for some in (first, rest, both, plan.only("c*")):
        for units in dealt_to(some, 2):
            assert_narrow_equals_masked(model, some, x, units)


def test_edits_that_cannot_be():
    _, plan, _ = cnn()
    with pytest.raises(ValueError, match=r"'d\*'.*\bc0, c1, h\b"):
        plan.only("d*")
    with pytest.raises(ValueError, match=r"'c0'.*\bplan\.without\b"):
        plan + plan.only("c0")
    with pytest.raises(ValueError, match=r"convs\.0\.weight\b.*\(6, 2, 3, 3\)"):
        plan + mlp()[1]
    renamed = replace(plan.only("h"), axes=(replace(plan.only("h").axes[0], name="g"),))
    with pytest.raises(ValueError, match=r"hidden\.weight\b.*\bplan\.without\b"):
        plan + renamed


def test_rules_in_the_words_of_tensor_parallelism_for_attention():
    torch.manual_seed(0)
    model, inputs = next(f for f in FAMILIES if f.name == "gpt-manual-attention").build()
    rules = {
        "h.*.attn.c_attn": Heads("h.*.attn", 6, parts=3), "h.*.attn.c_proj": In("h.*.attn"),
        "h.*.mlp.c_fc": Out("h.*.mlp"), "h.*.mlp.c_proj": In("h.*.mlp"),
    }  # fmt: skip
    plan = Plan.from_rules(model, rules)
    found = discover(model, inputs)
    assert {(a.name, a.num_units, a.kind) for a in plan.axes} == {(a.name, a.num_units, a.kind) for a in found.axes}
    starts = {a.name: a.start for a in found.axes}
    for axis in plan.axes:
        for name, row in plan.only(axis.name).dims.items():
            for d, dim in enumerate(row):
                if dim is not None:
                    assert (found.only(axis.name).dims[name][d].units - starts[axis.name] + starts[axis.name]).equal(
                        dim.units
                    )


def test_rules_for_heads_that_do_not_fit_are_refused():
    model = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match=r"(?=.*\b24\b)(?=.*\b5\b)(?=.*'a').*qkv\.weight\b"):
        Plan.from_rules(model, {"qkv": Heads("a", 5, parts=3), "proj": In("a")})
