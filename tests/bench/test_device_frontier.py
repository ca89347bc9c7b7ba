"""bench/device_frontier.py: which runs there are, that it ends them when the time is over, and what it says then."""

import sys

import pytest

from skerry.experiments.runs.execute import configure


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("device_frontier.py")


@pytest.mark.parametrize("small", [False, True])
def test_all_methods_that_a_recipe_has_run_at_its_full_length(bench, tmp_path, small):
    runs = bench.trainings(tmp_path, "cpu", small)
    assert len(runs) == len({run.folder for run in runs}) == 10
    for run in runs:
        config = configure(run.recipe, run.method, run.settings | {"data.crops_and_flips": True})
        assert config.data["crops_and_flips"]
        if not small:
            own = configure(run.recipe, run.method, {})
            for name in ("rounds", "local_steps", "batch_size", "optimizer", "workers"):
                assert getattr(config, name) == getattr(own, name)
            assert config.model["width"] == 64
        assert f"{run.recipe} --method {run.method} --device cpu" in " ".join(run.command)


def fake(bench, folder, code, monkeypatch):
    """Let a training be this Python code, called with its folder."""
    command = property(lambda self: [sys.executable, "-c", code, str(self.folder)])
    monkeypatch.setattr(bench.Training, "command", command)
    return [
        bench.Training("vgg-cifar", method, folder / "vgg-cifar" / method, {}, "cpu") for method in ("ist", "narrow")
    ]


def test_runs_are_ended_when_the_time_is_over(bench, tmp_path, monkeypatch):
    started = []
    start = bench.Training.start
    monkeypatch.setattr(bench.Training, "start", lambda self: started.append(start(self)) or started[-1])
    runs = fake(bench, tmp_path, "import time; time.sleep(600)", monkeypatch)
    assert bench.run_all(runs, 0.5, at_once=1) == []
    assert [process.poll() for process in started] == [-15]  # SIGTERM; the other one never began
    assert not any(run.done for run in runs)


def test_a_run_that_fails_is_told_and_one_that_is_done_is_kept(bench, tmp_path, monkeypatch):
    code = "import sys; print('error: no data'); sys.exit('narrow' in sys.argv[1])"
    runs = fake(bench, tmp_path, code, monkeypatch)
    assert bench.run_all(runs, 60, at_once=2) == [f"vgg-cifar narrow: error: no data (see {runs[1].log})"]
    for run in runs:
        run.folder.mkdir(parents=True)
        (run.folder / "summary.json").write_text("{}")
    assert bench.run_all(runs, 60, at_once=2) == []


def test_points_are_evaluations_and_what_sends_nothing_has_its_last(bench, tmp_path):
    def run_of(*metrics):
        lines = [{"bytes_due": b, "accuracy": a} for b, a in metrics]
        return bench.Run("run", {}, lines, {}, {})

    assert bench.points(run_of((10, 0.1), (20, None), (30, 0.3))) == [(10, 0.1, 0.0), (30, 0.3, 0.0)]
    assert bench.points(run_of((0, 0.1), (0, 0.2))) == [(0, 0.2, 0.0)]
    assert bench.points(run_of((10, None))) == []
