"""bench/accuracy/label_skew.py: all rows cost a site the same; rates are chosen on validation, and runs are kept."""

import json

import pytest
import torch

from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.trained import Apart, Narrow


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("accuracy/label_skew.py")


def units_of_sites(bench, row):
    """The number of units of each hidden layer that each site holds in the first round."""
    algorithm = row.make(local_steps=row.local_steps)
    if isinstance(algorithm.trains, Narrow):
        return [bench.WIDE * algorithm.trains.width] * bench.SITES
    if isinstance(algorithm.trains, Apart):
        return [row.hidden / algorithm.trains.num_nets] * bench.SITES
    model = bench.MLP([4, row.hidden, row.hidden, 10], norm=False)
    plan = Plan.from_rules(model, bench.mlp_rules(2, norm=False))
    assignment: Assignment = algorithm.partition.assign(plan.axes, 0)
    return assignment.held[:, plan.axes[0].units].sum(1).tolist()


def test_a_site_holds_a_quarter_and_takes_the_same_steps_in_every_row(bench):
    for name, row in bench.ROWS.items():
        expected = bench.WIDE if name.startswith("wide") else bench.OWN
        held = units_of_sites(bench, row)
        if name.startswith("heterofl"):
            assert sum(held) / len(held) == expected
            assert max(held) == bench.WIDE
        else:
            assert max(held) == pytest.approx(expected, abs=1), name
        assert bench.STEPS % row.local_steps == 0
        assert bench.STEPS // row.local_steps >= bench.SITES  # each net of a relay reaches each site


def made(bench, path, monkeypatch, best_rate):
    """Runs: on validation the better, the nearer to ``best_rate``; on the test set, the higher the rate."""
    trained = []

    def run(key):
        trained.append(key)
        _, _, rate, seed = key
        return {"valid": 1 - abs(rate - best_rate), "test": rate + seed / 100, "megabytes": 1.0, "parameters": 7}

    monkeypatch.setattr(bench, "run", run)
    return bench.Runs(path / "results.jsonl", trains=True), trained


@pytest.mark.parametrize(("best_rate", "tried"), [(0.05, 3), (0.2, 4), (0.0125, 5)])
def test_rates_are_widened_until_the_best_on_validation_is_inside(bench, tmp_path, monkeypatch, best_rate, tried):
    runs, trained = made(bench, tmp_path, monkeypatch, best_rate)
    found = bench.cell(runs, "by label", "ist", 2)
    assert (found.rate, found.inside) == (best_rate, True)
    assert found.accuracies == [best_rate, best_rate + 0.01]
    assert len(trained) == tried + 1
    again, trained = made(bench, tmp_path, monkeypatch, best_rate)
    assert bench.cell(again, "by label", "ist", 2) == found
    assert not trained


def test_the_table_is_made_from_the_file_alone(bench, tmp_path, monkeypatch, capsys):
    lines = [
        {"key": ["by label", name, rate, seed], "valid": valid, "test": test, "megabytes": 2.0, "parameters": 1234}
        for name, rate, seed, valid, test in (
            ("ist", 0.05, 0, 0.70, 0.80),
            ("ist", 0.1, 0, 0.60, 0.90),
            ("ist", 0.05, 1, 0.70, 0.82),
            ("wide FedAvg", 0.1, 0, 0.90, 0.95),
            ("ensemble", 0.1, 0, None, None),
        )
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(bench, "run", lambda key: pytest.fail("trained"))
    monkeypatch.setattr("sys.argv", ["x.py", "--page", "--out", str(tmp_path), "--seeds", "2"])
    threads = torch.get_num_threads()
    bench.main()
    torch.set_num_threads(threads)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[-2:] == [
        "| wide FedAvg | 1,234 | 2.0 | - | - | - | 0.950 (edge 0.1) |",
        "| ist | 1,234 | 2.0 | - | - | - | **0.810 ± 0.014 (edge 0.05)** |",
    ]
