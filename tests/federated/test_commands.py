"""What ``skerry serve`` and ``skerry join`` check, in this process."""

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from skerry.experiments.cli import call
from skerry.experiments.cli.federated import _by_speed, _public_keys, _site
from skerry.experiments.methods import build
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configure


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [("gpt-shakespeare", "data.file", "~/notes.txt"), ("digits-mlp", "model.sizes", 10**9)],
)
def test_the_server_does_not_choose_what_a_site_reads(recipe, name, value):
    config = find_recipe(recipe).config.change({name: value})
    with pytest.raises(ValueError, match=f"the server has {name}="):
        _site(config, None, None, 0, {})


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
