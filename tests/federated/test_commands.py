"""What ``skerry serve`` and ``skerry join`` check, in this process."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from skerry.experiments.cli import call
from skerry.experiments.cli.federated import _by_speed, _public_keys, _site
from skerry.experiments.methods import build
from skerry.experiments.recipes import find_recipe
from skerry.experiments.recipes.own import own_object
from skerry.experiments.runs.execute import configure

PAGE = Path(__file__).parents[2] / "docs" / "federated.md"


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [("gpt-shakespeare", "data.file", "~/notes.txt"), ("digits-mlp", "model.sizes", 10**9)],
)
def test_the_server_does_not_choose_what_a_site_reads(recipe, name, value):
    config = find_recipe(recipe).config.change({name: value})
    with pytest.raises(ValueError, match=f"the server has {name}="):
        _site(config, None, None, 0, {})


def test_a_site_tells_the_number_of_its_samples_only_if_it_is_willing():
    config = configure("examples/own_recipe.py:spirals", "narrow", {"by_samples": True, "workers": 3})
    with pytest.raises(ValueError, match=r"the server has by_samples=true, this site false.*--set 'by_samples=true'"):
        _site(config, config.recipe, None, 0, {})
    assert _site(config, config.recipe, None, 0, {"by_samples": True}).number == 0


def test_a_site_may_set_what_the_server_has():
    given = {"data.file": "/no/other.txt"}
    with pytest.raises(ValueError, match=r"other\.txt"):  # the file is looked for
        _site(find_recipe("gpt-shakespeare").config.change(given), None, None, 0, given)


def test_keys_are_numbered_as_people_count(tmp_path):
    keys = [generate_key_pairs()[1] for _ in range(12)]
    for k, key in enumerate(keys):
        (tmp_path / f"site-{k}.key.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    assert _public_keys(tmp_path, 12) == [public_key_to_bytes(key) for key in keys]


def test_too_few_sites_are_told_in_one_line(tmp_path):
    out, short = tmp_path / "run", ["--patience", "0.01", "--rounds", "1"]
    serve = ["serve", "examples/own_recipe.py:spirals", "--method", "relay", "--workers", "3", "--insecure", *short]
    code, told = call([*serve, "--listen", "127.0.0.1:0", "--out", str(out)])
    assert code == 1
    assert "0 of 3 sites are there" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("method", "name", "meant"),
    [("ist", "capacities", (0.5, 1.0, 1.5)), ("heterofl", "fractions", (1 / 3, 2 / 3, 1.0))],
)
def test_what_sites_measure_becomes_a_setting(method, name, meant, monkeypatch):
    """So the files of the run have it, the sites get it with the job, and a resumed run does not measure."""
    monkeypatch.setattr("skerry.federated.measured_capacities", lambda *a, **m: (0.5, 1.0, 1.5))
    config = configure("digits-mlp", method, {"workers": 3})
    found = _by_speed(config, SimpleNamespace(grid=None, numbers=None), 1.0)
    assert getattr(found.partition, name) == pytest.approx(meant)
    assert build(found).partition.num_workers == 3
    if method == "ist":
        with pytest.raises(ValueError, match=r"partition\.capacities is given"):
            _by_speed(found, SimpleNamespace(grid=None, numbers=None), 1.0)


def test_a_site_that_names_no_data_is_told_what_it_trains_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("skerry.federated.join.join", lambda *arguments, **more: None)
    (tmp_path / "ours.py").write_text("def patients():\n    return None, None\n")
    told = []
    for more in ([], ["--data", str(tmp_path / "ours.py") + ":patients"]):
        assert call(["join", "h:1", "digits-mlp", *more]) == (0, "")
        told.append("no --data: this site trains on its part of the recipe's own samples" in capsys.readouterr().err)
    assert told == [True, False]


def test_the_recipe_of_the_page_scales_what_a_site_trains_on(tmp_path, monkeypatch):
    """By constants that are in the recipe: what ``--data`` returns is taken as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    blocks = re.findall(r"^```python notest\n# (\w+\.py)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["recipe.py", "ours.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    (tmp_path / "patients.csv").write_text("80,105,1\n40,155,0\n")
    config = configure("recipe.py:ours", "narrow", {"workers": 3, "batch_size": 2, "prior_adjusted": True})
    own = own_object("ours.py:patients")
    monkeypatch.delitem(sys.modules, "recipe")
    assert _site(config, config.recipe, own, 2, {}).number == 2
    assert own[0].tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert own[1].tolist() == [1, 0]
