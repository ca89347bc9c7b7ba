"""bench/accuracy/tickets.py: a trial at toy size on digits, and the distance between two orders."""

import math

import pytest
import torch


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("accuracy/tickets.py")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # short runs are warned of
def test_a_trial_has_all_rows_once_and_a_report(bench, tmp_path):
    case = bench.Case(
        recipe="digits-mlp",
        model={"model.hidden": 16},
        axes=("h1",),
        keeps=(0.5,),
        methods={"ist": {"rounds": 4, "local_steps": 10}, "single": {"rounds": 4, "local_steps": 40}},
        tuning={"rounds": 1, "local_steps": 30, "optimizer.lr": 0.05},
        num_test=200,
    )
    rows = list(bench.Trial(case, tmp_path / "tickets").rows())
    assert [(r["pretraining"], r["keep"]) for r in rows] == [
        ("ist", 0.5), ("single", 0.5), ("random", 0.5), ("none", 0.5), ("ist", 1.0), ("single", 1.0)
    ]  # fmt: skip
    small, whole = rows[0], rows[4]
    assert small["parameters"] == whole["parameters"] - 8 * (16 + 2 + 10)
    assert small["mb"] > 0 == rows[1]["mb"]
    assert rows[1]["tuned"][0] > rows[3]["pruned"][0] + 0.3
    assert all(row["pruned"] != row["rescaled"] for row in rows[:4])  # both of every net, whatever trained it
    assert all(row["pruned"] == row["rescaled"] for row in rows[4:])
    again = bench.Trial(case, tmp_path / "tickets")
    assert list(again.rows()) == rows
    assert again.pretrainings == {}  # nothing was made again
    assert again.report(tmp_path).count("\n") == 8
    assert (tmp_path / "tickets.png").stat().st_size > 1000


def test_the_distance_of_orders_is_that_of_the_paper(bench):
    end = torch.tensor([5.0, 4.0, 3.0])
    assert bench.rank_distance(end, end) == 0
    by_hand = 1 * math.log(2) + 1 / 2 * math.log(2)  # the first two change places
    assert bench.rank_distance(torch.tensor([4.0, 5.0, 3.0]), end) == pytest.approx(by_hand)
    norms = torch.rand(60, 400, generator=torch.Generator().manual_seed(0))
    found = bench.distances(norms, [bench.Axis("a", 400)])
    assert found[-1] == 0
    assert sum(found[:-1]) / 59 == pytest.approx(1, abs=0.1)  # chance
