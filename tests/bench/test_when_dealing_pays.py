"""bench/map.py: points cost all methods the same; table and picture from run folders made up here."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from made_runs import make_run

from skerry.experiments.runs.execute import configure

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))  # as when it is run as a script: it imports its neighbour
        spec = importlib.util.spec_from_file_location("bench_map", BENCH / "map.py")
        module = sys.modules["bench_map"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def test_every_point_has_settings_that_its_recipe_takes_and_a_folder_of_its_own(bench):
    points = [point for factor in bench.factors(long=True) for point in factor.points.values()]
    settings = {}
    for point in points:
        own = [point.settings(method) for method in bench.METHODS]
        configs = [configure(point.recipe, each["method"], dict(each)) for each in own]
        assert len({(c.rounds, c.local_steps, c.workers, str(c.model), c.split) for c in configs}) == 1
        assert configs[0].rounds >= configs[0].workers
        often = point.settings("narrow-often")
        assert often["rounds"] == bench.OFTEN * configs[0].rounds
        steps = configs[0].rounds * configs[0].local_steps
        assert often["rounds"] * often["local_steps"] == pytest.approx(steps, rel=0.05)
        assert settings.setdefault(point.name, own) == own  # the base is a point of each factor
    assert len(settings) == len(points) - len(bench.factors(long=True)) + len(bench.BASE)


def test_a_training_is_as_long_as_its_part_of_the_recipe(bench):
    for budget in (0.05, 0.2, 1.0):
        own = bench.Point("fashion-mlp", {"budget": budget}).settings("relay")
        assert own["rounds"] * own["local_steps"] == pytest.approx(budget * 29 * 250, rel=0.01)


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


def test_table_and_picture_are_made_from_folders(bench, tmp_path, monkeypatch, capsys):
    def made(name, method, accuracy, rate=0.1, **config):
        folder = tmp_path / "map" / name / f"{method}-{rate}-{config.get('seed', 0)}"
        make_run(folder, method=method, accuracy=accuracy, optimizer={"lr": rate}, model={"hidden": 1024}, **config)

    for name, shift in (
        ("fashion-mlp", 0.0),
        ("fashion-mlp-samples500", -0.2),
        ("fashion-mlp-splitby_label-prior_adjustedTrue", -0.3),
    ):
        made(name, "relay", 0.80 + shift, rate=0.05)
        for seed, more in ((0, 0.00), (1, 0.02)):
            made(name, "relay", 0.82 + shift + more, seed=seed)
            made(name, "narrow", 0.80 + shift, seed=seed)
    made("fashion-mlp", "ensemble", 0.79)
    made("depends-xc", "relay", 0.1, changes={3: {"metrics": {"P@1": 0.5, "P@3": 0.3}}})
    made("depends-xc", "narrow", 0.1, summary=False)  # not done yet
    picture = tmp_path / "map.png"
    monkeypatch.setattr("sys.argv", ["map.py", "--report", "--out", str(tmp_path / "map"), "--picture", str(picture)])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    (base,) = [line for line in lines if line.startswith("| fashion-mlp: training samples | 60,000 |")]
    assert "| 256 | .8300 ± .0141 (4.00 MB, lr ≥0.1) | .8000 ± .0000 (4.00 MB, lr ≤0.1) | .7900 (" in base
    assert base.endswith("| +3.0 ± 1.4 |")
    assert [line for line in lines if "skew of the labels | by label | 256 | .5300" in line]
    assert [line for line in lines if "depends-xc: labels | 17,860 | 256 | .5000 (" in line and line.endswith("| - |")]
    assert not any("2,000" in line for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_runs_are_told(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["map.py", "--report", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=rf"{tmp_path}\b.*--report"):
        bench.main()
