"""bench/accuracy/language_models.py: its table has means over seeds, the best net is best, each run is made once."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("accuracy/language_models.py")


def row(seed, loss):
    memory = {"weights": 1e6, "activations": 2e6 * seed}
    return {"name": "relay", "rate": 0.1, "length": 1.0, "seed": seed, "loss": loss, "perplexity": math.exp(loss),
            "flop": 1e12, "steps": 5, "bytes_due": 4e6 * seed, "memory": memory}  # fmt: skip


def test_figures_of_the_table_are_means_over_seeds(bench, tmp_path):
    rows = [row(0, 1.0), row(1, 2.0), {**row(0, 3.0), "rate": 0.2}]
    cells = [cell.strip() for cell in bench.table(rows).splitlines()[2].strip("|").split("|")]
    assert cells[2:8] == ["0.1 (tried 0.1, 0.2)", "2", "1.500", "-", "-", f"{math.exp(1.5):.2f}"]
    assert [float(cell) for cell in cells[8:]] == [1, 5, 2, 1, 1]
    bench.picture(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_best_net_is_the_one_with_the_lowest_loss(bench):
    nets = [nn.Embedding(5, 5) for _ in range(3)]
    text = torch.randint(5, (4, 8))
    x, y = text[:, :-1], text[:, 1:]
    losses = [F.cross_entropy(net(x).flatten(0, 1), y.flatten()).item() for net in nets]
    assert bench.mixture_losses(nets, x, y)["best_net"] == pytest.approx(min(losses), rel=1e-5)


def test_each_run_is_made_once_and_adds_a_line(bench, tmp_path, monkeypatch):
    made = []

    def measure(recipe, line, rate, length, seed, file):
        made.append((line.name, rate, length))
        assert file == ""
        return {"name": line.name, "rate": rate, "length": length, "seed": seed}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda num: None)
    for rates in ("1", "2"):
        argv = ["gpt-shakespeare", "--methods", "narrow,relay", "--rates", rates, "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["language_models.py", *argv])
        bench.main()
    narrow, relay = bench.LINES["gpt-shakespeare"][:2]
    first = [(line.name, line.rates[0], 1.0) for line in (narrow, relay)]
    assert made == first + [(line.name, line.rates[1], 1.0) for line in (narrow, relay)]
    lines = (tmp_path / "gpt-shakespeare.jsonl").read_text().splitlines()
    assert [(row["name"], row["rate"], row["length"]) for row in map(json.loads, lines)] == made
