"""Every recipe runs, with each method, on small data of the same kind."""

import archives
import pytest
import torch

from skerry import FromInitializer, materialize
from skerry.cli import call
from skerry.comparison import load_run
from skerry.config import Config
from skerry.experiment import configure, run
from skerry.methods import METHODS
from skerry.models.bag import BagMLP
from skerry.recipes import RECIPES
from skerry.recipes.depends_xc import several_labels
from skerry.runtimes import Serial

QUICK = {"rounds": 2, "local_steps": 2, "batch_size": 8, "model.hidden": 12, "workers": 2, "threads": 1}


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ddp"])
@pytest.mark.parametrize("recipe", ["digits-mlp", "speech-mlp2", "speech-mlp3", "depends-xc"])
def test_recipes_run_with_every_method(tmp_path, monkeypatch, recipe, method):
    archives.make(tmp_path, monkeypatch)
    quick = {k: v for k, v in QUICK.items() if method != "single" or k != "workers"}
    config = configure(recipe, method, quick)
    records = []
    run(config, tmp_path / "run", Serial(), resume=False, on_round=lambda record, state: records.append(record))
    assert len(records) == 2
    score = records[-1].score
    assert 0 < score.loss < 20
    names = {"P@1", "P@3", "P@5"} if recipe == "depends-xc" else set()
    assert score.metrics.keys() == names
    assert all(0 <= value <= 1 for value in score.metrics.values())


def test_ddp_runs_in_processes_and_counts_the_bytes_of_gradients(tmp_path):
    words = [w for key, value in QUICK.items() for w in ("--set", f"{key}={value}")]
    code, told = call(["train", "digits-mlp", "--method", "ddp", "--out", str(tmp_path / "run"), *words])
    assert (code, told) == (0, "")
    run = load_run(tmp_path / "run")
    assert run.config["runtime"] == "processes"
    weights = 64 * 12 + 12 * 12 + 4 * 12 + 12 * 10 + 10
    assert run.metrics[-1]["bytes_due"] > 4 * 4 * weights  # four steps, 2 (n - 1) / n = 1 of their size each


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_have_settings_for_every_method(recipe):
    built = RECIPES[recipe]()
    assert isinstance(built.config, Config)
    assert built.config.recipe == recipe
    assert built.methods.keys() == METHODS.keys()
    for method in METHODS:
        configure(recipe, method, {})


def test_the_loss_for_several_labels_is_their_mean_cross_entropy():
    logits, y = torch.randn(6, 9, dtype=torch.float64), torch.full((6, 4), -1)
    expected = 0.0
    for row in range(6):
        labels = torch.randperm(9)[: 1 + row % 4]
        y[row, : len(labels)] = labels
        expected += -torch.log_softmax(logits[row], 0)[labels].mean() / 6
    torch.testing.assert_close(several_labels(logits, y), expected)


def test_words_that_fill_rows_up_count_for_nothing():
    with torch.device("meta"):
        model = BagMLP(20, [6, 5], 7)
    model = materialize(model, FromInitializer(model, 0)).eval()
    words = torch.tensor([[3, 9, 0, 0], [4, 0, 0, 0]])
    torch.testing.assert_close(model(words), model(torch.tensor([[0, 0, 9, 3, 0], [0, 4, 0, 0, 0]])))
    h = torch.relu(model.norms[0](model.words.weight[[3, 9]].sum(0)[None]))
    h = torch.relu(model.norms[1](model.layers[0](h)))
    torch.testing.assert_close(model(words)[:1], model.out(h))
