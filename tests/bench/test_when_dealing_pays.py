"""bench/accuracy/when_dealing_pays.py: all methods cost the same at a point; table and picture from made-up runs."""

import pytest
from made_runs import make_run

from skerry.experiments.runs.execute import configure


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("accuracy/when_dealing_pays.py")


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
    monkeypatch.setattr(
        "sys.argv", ["when_dealing_pays.py", "--report", "--out", str(tmp_path / "map"), "--picture", str(picture)]
    )
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    (base,) = [line for line in lines if line.startswith("| fashion-mlp: training samples | 60,000 |")]
    assert "| 256 | .8300 ± .0141 (4.00 MB, lr ≥0.1) | .8000 ± .0000 (4.00 MB, lr ≤0.1) | .7900 (" in base
    assert base.endswith("| +3.0 ± 1.4 |")
    assert [line for line in lines if "label skew | by label | 256 | .5300" in line]
    assert [line for line in lines if "depends-xc: labels | 17,860 | 256 | .5000 (" in line and line.endswith("| - |")]
    assert not any("2,000" in line for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_runs_is_an_error(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--report", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=rf"{tmp_path}\b.*--report"):
        bench.main()
