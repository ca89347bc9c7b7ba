"""Recipes of users, from a module or a file: every command takes them, and what is wrong with them is one line."""

import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import skerry
from skerry.experiments.cli import call
from skerry.experiments.recipes import Recipe, Task, find_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_recipe.py"
X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
QUICK = ["--rounds", "2", "--workers", "2", "--set", "local_steps=3", "--set", "model.hidden=12", "--set", "threads=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the example as a module of its own name, in which commands start."""
    (tmp_path / "my_nets.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_nets", None)


@pytest.mark.parametrize("reference", ["my_nets:spirals", "my_nets.py:spirals"])
def test_train_load_and_go_on(here, reference, capsys):
    assert call(["train", reference, "--method", "relay", "--out", "a", *QUICK]) == (0, "")
    config = json.loads((here / "a" / "config.json").read_text())
    assert (config["recipe"], config["method"], config["model"]) == (reference, "relay", {"hidden": 12})
    assert call(["train", reference, "--resume", "--rounds", "3", "--out", "a"]) == (0, "")
    assert re.search(r"warning: .*schedule now spans 3 rounds", capsys.readouterr().err, re.MULTILINE)
    predictor = skerry.load("a")
    assert predictor.round == 3
    assert set(predictor.predict([[10, 5], [-40, 0]])) <= {"red", "green", "blue"}


def test_compare_goes_on_after_a_method_that_does_not_fit_the_model(here):
    path = here / "my_nets.py"
    path.write_text(
        path.read_text().replace("nn.Linear(2, hidden), nn.ReLU(),", "nn.Linear(2, hidden), nn.Softmax(1),")
    )
    code, message = call(["compare", "my_nets.py:spirals", "--methods", "ist,relay,narrow", "--out", "c", *QUICK])
    assert code == 1
    assert re.search(r"0\.weight.*use ist or narrow", message)  # the relay: a softmax is not dealt out
    assert {path.parent.name for path in here.glob("c/*/summary.json")} == {"ist", "narrow"}


@pytest.mark.slow
def test_processes_find_the_recipe_too_and_go_on_with_other_workers(here):
    for out, words in (("p", ["--runtime", "processes"]), ("s", [])):
        assert call(["train", "my_nets:spirals", "--out", out, *words, *QUICK]) == (0, "")
        assert call(["train", "--resume", "--rounds", "3", "--workers", "3", "--out", out]) == (0, "")
    x = torch.randn(20, 2) * 40
    torch.testing.assert_close(skerry.load("p").outputs(x), skerry.load("s").outputs(x))


def test_seeds_draw_other_models_and_the_same_seed_the_same(here):
    recipe = find_recipe("my_nets:spirals")
    first, again, other = (
        recipe.build(recipe.config.change({"seed": seed})).model[0].weight.detach() for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_samples_drawn_at_random_are_the_same_whenever_the_recipe_is_built():
    def task(config):
        x = torch.randn(400, 4) + torch.from_numpy(np.random.randn(400, 4)).float() + random.random()
        return Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))

    def model(config, sizes):
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        return net, skerry.discover(net, torch.zeros(2, 4))

    config = find_recipe("digits-mlp").config
    recipe = Recipe(summary="drawn", config=config, task=task, model=model)
    states = torch.get_rng_state(), random.getstate()
    first, again = (recipe.build(config).test[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, recipe.build(replace(config, seed=1)).test[0])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_a_recipe_that_is_elsewhere_now_can_be_given(here, monkeypatch):
    assert call(["train", "my_nets.py:spirals", "--out", "a", *QUICK]) == (0, "")
    recipe = find_recipe("my_nets.py:spirals")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(ValueError, match=r"my_nets\.py: there is no such file in .*elsewhere.*recipe="):
        skerry.load(here / "a")
    assert isinstance(recipe, Recipe)
    for given in (recipe, lambda: recipe):
        assert skerry.load(here / "a", recipe=given).round == 2


MISTAKES = """
from dataclasses import replace


def empty():
    return None


def few_names():
    return replace(spirals(), task=lambda config: replace(task(config), classes=("red", "green")))


def no_task():
    return replace(spirals(), task=lambda config: [])


def no_plan():
    return replace(spirals(), model=lambda config, sizes: model(config, sizes)[0])
"""


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("my_net:spirals", r"no module 'my_net'.*my_recipe\.py:recipe"),
        ("my_net.deep:spirals", r"no module 'my_net'"),
        ("my_net.py:spirals", r"my_net\.py: there is no such file"),
        ("my_nets:spiral", r"my_nets.*'spiral'.*'spirals'"),
        ("my_nets.py:spiral", r"my_nets\.py.*'spiral'.*'spirals'"),
        ("my_nets:nn", r"my_nets:nn: .*module.*Recipe"),
        ("my_nets:empty", r"my_nets:empty: .*NoneType.*Recipe"),
        ("my_nets.py", r"which function\?.*my_nets\.py:FUNCTION"),
        ("my_nets.py:few_names", r"classes: 2.*up to 2"),
        ("my_nets.py:task", r"my_nets\.py:task: .*'config'; expected a function without arguments"),
        (".my_nets:spirals", r"\.my_nets:spirals: expected MODULE:FUNCTION"),
        (":spirals", r":spirals: expected MODULE:FUNCTION"),
        ("my_nets.py:no_task", r"'my_nets\.py:no_task'.*list.*Task"),
        ("my_nets.py:no_plan", r"'my_nets\.py:no_plan'.*Sequential.*skerry\.discover"),
    ],
)
def test_each_mistake_gets_one_line(here, command, reference, names):
    path = here / "my_nets.py"
    path.write_text(path.read_text() + MISTAKES)
    code, message = call([command, reference, "--out", "o", *QUICK])
    assert code != 0
    assert re.search(names, message)
    assert "\n" not in message
    assert not (here / "o" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"scaling": lambda x: x / 2}, r"scaling: function, expected a Scaling"),
        ({"train": (X[:0], Y[:0])}, r"train: 0 samples and 0 targets"),
        ({"test": (X, Y[1:])}, r"test: 4 samples and 3 targets"),
        ({"test": (X,)}, r"test: expected a pair"),
        ({"train": (X, Y - 1)}, r"train: targets are down to -1.*0 to 1"),
        ({"test": (X, Y + 1)}, r"classes: 2.*of test are up to 2"),
        ({"test": (X, Y[:, None] + 1)}, r"classes: 2.*of test are up to 2"),
    ],
)
def test_a_task_that_cannot_be_trained_is_one_line(wrong, names):
    right = {"train": (X, Y), "test": (X, Y), "classes": 2}
    Task(**right)
    Task(**right | {"train": (X, Y[:, None] - 1)})  # labels in rows, padded
    with pytest.raises(ValueError, match=names):
        Task(**right | wrong)


def test_a_mistake_inside_a_recipe_is_shown_as_it_is(here):
    (here / "my_nets.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        call(["train", "my_nets:spirals", "--out", "o"])
