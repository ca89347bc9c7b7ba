"""bench/accuracy/rate_search.py: which rates are tried, and what a run returns."""

import importlib
import json
from pathlib import Path

import pytest

from skerry.experiments.runs.execute import configure


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("accuracy/rate_search.py")


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({0.2: 0.7, 0.1: 0.8}, (0.1, 0.2, 0.05)),
        ({0.1: 0.7, 0.2: 0.8}, (0.1, 0.2, 0.4)),
        ({0.1: 0.7, 0.2: 0.8, 0.4: 0.7}, (0.1, 0.2, 0.4)),
        ({0.1: 0.7, 0.2: None}, (0.1, 0.2, 0.05)),  # failed
        ({0.1: 0.1, 0.2: 0.1}, (0.1, 0.2)),  # both no better than chance: it would never end
        ({0.1: None, 0.2: None}, (0.1, 0.2)),
    ],
)
def test_a_best_rate_at_an_edge_asks_for_one_more(bench, values, rates):
    assert bench.wider(values) == rates


@pytest.mark.parametrize(
    ("values", "best"), [({0.1: 0.7, 0.2: 0.8}, 0.2), ({0.1: 0.7, 0.2: None}, 0.1), ({0.1: None}, None)]
)
def test_the_best_rate_is_of_a_run_that_succeeded(bench, values, best):
    assert bench.best_rate(values) == best


def test_a_run_trains_once_and_returns_its_accuracy(bench, tmp_path):
    settings = {"method": "relay", "rounds": 4, "local_steps": 2, "threads": 1, "eval_every": 0, "seed": 3}
    run = bench.Run("digits-mlp", tmp_path / "run", settings)
    value = run.value()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert value == json.loads(lines[-1])["accuracy"]
    assert len(lines) == 4
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = configure("digits-mlp", "relay", {k: v for k, v in settings.items() if k != "method"})
    assert {name: saved[name] for name in expected.to_json()} == json.loads(json.dumps(expected.to_json()))
    written = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    assert run.value() == value
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == written


def test_a_run_that_fails_is_reported_and_returns_none(bench, tmp_path, capsys):
    run = bench.Run("digits-mlp", tmp_path / "run", {"method": "relay", "workers": 0})
    assert run.value() is None
    assert "run: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_goes_beyond_an_edge_and_runs_all_seeds_at_the_best_rate(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench" / "accuracy"))  # also of the pool's processes
    bench = importlib.import_module("rate_search")
    settings = {"method": "narrow", "rounds": 2, "local_steps": 5, "threads": 1, "eval_every": 0}

    def run_of(name, rate, seed):
        folder = tmp_path / f"{name}-{rate:g}-{seed}"
        return bench.Run("digits-mlp", folder, {**settings, "optimizer.lr": rate, "seed": seed})

    assert bench.search({"row": ((0.001, 0.002), 2)}, run_of, edges=True, at_once=1) == []
    made = {path.name for path in tmp_path.iterdir()}
    assert {"row-0.001-0", "row-0.002-0", "row-0.004-0"} <= made
    values = {name: bench.load_run(tmp_path / name).metrics[-1]["accuracy"] for name in made if name.endswith("-0")}
    best = max(values, key=lambda name: values[name])
    assert [name for name in made if name.endswith("-1")] == [best.removesuffix("0") + "1"]
