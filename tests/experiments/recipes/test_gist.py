"""Recipes of graph networks, on a small graph of the same kind: every method, processes, resume, loading, messages."""

import sys

import archives
import numpy as np
import pytest
import torch
from machines import run_on_machines

from skerry import load
from skerry.experiments.cli import call
from skerry.experiments.datasets.graphs import cora
from skerry.experiments.recipes import RECIPES, find_recipe
from skerry.experiments.reports.comparison import load_run
from skerry.experiments.runs.execute import configure, run
from skerry.runtimes.serial import Serial

made_graphs = pytest.importorskip("made_graphs")

SMALL = {"rounds": 3, "local_steps": 4, "model.hidden": 16, "model.heads": 4, "threads": 1, "optimizer.lr": 0.03}
CLUSTERS = {"data.parts": 10, "batch_size": 2}
METHODS = [method for method in RECIPES["gist-cora"]().methods if method != "ddp"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    archives.make_graphs(tmp_path / "cache", monkeypatch)


def small(recipe, method, **more):
    clusters = CLUSTERS if "wordnet" in recipe else {}
    workers = {} if method == "single" else {"workers": 2}
    return configure(recipe, method, SMALL | clusters | workers | {"runtime": "serial"} | more)


@pytest.mark.parametrize(
    ("recipe", "method", "kind"),
    [("gist-cora", "narrow", "gcn"), ("gist-wordnet", "relay", "sage")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [("gist-cora", method, "gcn") for method in METHODS if method != "narrow"]
        + [("gist-wordnet", "relay", kind) for kind in ("gcn", "gat", "gatv2")]
    ],
)
def test_recipes_run_and_are_loaded_without_their_data(tmp_path, monkeypatch, recipe, method, kind):
    run(small(recipe, method, **{"model.kind": kind}), tmp_path / "run", Serial(), resume=False)
    graph = cora().data()
    last = load_run(tmp_path / "run").metrics[-1]
    assert last["accuracy"] > 0.5  # of four classes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere"))
    found = load(tmp_path / "run").predict(graph)
    right = (found == graph.y.numpy())[graph.test_mask.numpy()]
    assert right.mean() == pytest.approx(last["accuracy"])


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_like_one_of_two_machines(tmp_path):
    words = [f"--set={key}={value}" for key, value in (SMALL | CLUSTERS).items() if key != "rounds"]
    train = ["train", "gist-wordnet", "--method", "ist", "--workers", "2", *words, "--set=schedule=constant"]
    found = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "SKERRY_DATA": ""}
    codes, said = run_on_machines(tmp_path, *[[*train, "--rounds", "3", "--out", "run"]] * 2, more=[found] * 2)
    assert codes == [0, 0], said
    out = ["--out", str(tmp_path / "serial")]
    assert call([*train, *out, "--rounds", "2"]) == (0, "")
    assert call(["train", *out, "--rounds", "3", "--resume"]) == (0, "")
    one, two = (load(folder).model.state_dict() for folder in (tmp_path / "0" / "run", tmp_path / "serial"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name])


@pytest.mark.parametrize(
    ("recipe", "changed", "words"),
    [
        ("gist-cora", {"batch_size": 8}, "batch_size=8: .* the whole graph, expected 1"),
        ("gist-cora", {"split": "by_label"}, "split=by_label: recipe 'gist-cora' deals out a graph, expected iid"),
        ("gist-cora", {"prior_adjusted": True}, "prior_adjusted=true: .* expected false"),
        ("gist-cora", {"data.labels": "splt"}, "labels 'splt'; did you mean 'split'"),
        ("gist-wordnet", {"data.own": "region"}, "own 'region'; did you mean 'regions'"),
        ("gist-wordnet", {"data.parts": 0}, "data.parts=0: expected a whole number from 1"),
        ("gist-wordnet", {"model.kind": "gatv3"}, "model.kind 'gatv3'; did you mean 'gatv2'"),
        (
            "gist-wordnet",
            {"model.kind": "gat", "model.heads": 3},
            "model.hidden=16: expected a multiple of model.heads",
        ),
        ("gist-wordnet", {"model.layers": 1}, "model.layers=1: expected at least 2"),
        ("gist-wordnet", {"model.dropout": 1.5}, "model.dropout=1.5: expected a number from 0 to 1"),
    ],
)
def test_wrong_settings_are_told(recipe, changed, words):
    with pytest.raises(ValueError, match=words):
        find_recipe(recipe).build(small(recipe, "relay", **changed))


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    code, told = call(["train", "gist-cora", "--out", str(tmp_path / "run")])
    assert code == 1
    assert "pip install 'skerry[graphs]'" in told
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert "data set 'cora' is not on this machine" in call(["train", "gist-cora", "--out", str(tmp_path / "run")])[1]


def test_a_loaded_model_takes_graphs_with_the_features_it_was_trained_on(tmp_path):
    run(small("gist-cora", "narrow", rounds=1), tmp_path / "run", Serial(), resume=False)
    loaded, graph = load(tmp_path / "run"), cora().data()
    assert loaded.predict_proba(graph).sum(1) == pytest.approx(np.ones(60))
    graph.x = graph.x.to_dense()[:, 1:]
    with pytest.raises(ValueError, match=r"x: samples of shape \(9,\), expected \(10,\)"):
        loaded.predict(graph)
    np.save(tmp_path / "x.npy", np.zeros((3, 10), dtype=np.float32))
    code, told = call(["predict", str(tmp_path / "run"), str(tmp_path / "x.npy")])
    assert code == 1
    assert "edge_index" in told
