"""bench/accuracy/language_models.py: its table has means over seeds, and the best net is the best."""

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
    assert cells[2:8] == ["0.1 of 0.1, 0.2", "2", "1.500", "-", "-", f"{math.exp(1.5):.2f}"]
    assert [float(cell) for cell in cells[8:]] == [1, 5, 2, 1, 1]
    bench.picture(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_best_net_is_the_one_with_the_lowest_loss(bench):
    nets = [nn.Embedding(5, 5) for _ in range(3)]
    text = torch.randint(5, (4, 8))
    x, y = text[:, :-1], text[:, 1:]
    losses = [F.cross_entropy(net(x).flatten(0, 1), y.flatten()).item() for net in nets]
    assert bench.mixture_losses(nets, x, y)["best_net"] == pytest.approx(min(losses), rel=1e-5)
