"""Language models as recipes: what a run reports is what its folder gives, and what is wrong is one line."""

import math
import re

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from skerry import load
from skerry.experiments.cli import call
from skerry.experiments.datasets import fetch
from skerry.experiments.recipes import RECIPES
from skerry.experiments.recipes.next_token import next_token_loss
from skerry.experiments.reports.comparison import load_run
from skerry.experiments.runs.execute import configure, run
from skerry.runtimes import Serial
from skerry.subnet import Mixture
from skerry.training.evaluation.evaluate import evaluate
from skerry.training.evaluation.metrics import Perplexity

pytestmark = pytest.mark.usefixtures("no_costs")
QUICK = {"rounds": 2, "local_steps": 2, "batch_size": 4, "workers": 2, "threads": 1}
GPT = QUICK | {"model.layers": 1, "model.width": 8, "model.heads": 2, "model.head_size": 4, "model.hidden": 6,
               "data.block": 10}  # fmt: skip
TEXT = "to be or not to be, that is it. " * 90 + "def f(x): return x + 1\n" * 120
STREAM_TOO = {"model.width": 16, "model.groups": 2}


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
    """Sentences of two kinds, fetched into an empty cache."""
    monkeypatch.delenv("SKERRY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    fetch("shakespeare", path, say=lambda line: None)
    return path


def words(settings):
    return [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("method", ["relay", "resist", "narrow"])
def test_a_run_is_loaded_without_the_text_and_its_model_has_the_reported_perplexity(tmp_path, method):
    own = {"relay": STREAM_TOO, "resist": {"model.layers": 2}, "narrow": {}}[method]
    config = configure("gpt-shakespeare", method, GPT | own)
    task = RECIPES["gpt-shakespeare"]().task(config)
    run(config, tmp_path / "run", Serial(), resume=False)
    last = load_run(tmp_path / "run").metrics[-1]
    (tmp_path / "cache" / "skerry" / "shakespeare" / "tinyshakespeare.txt").unlink()
    predictor = load(tmp_path / "run")
    assert "".join(predictor.classes) == "".join(task.classes)
    x, y = task.test
    loss = F.cross_entropy(predictor.outputs(x, batch_size=5).flatten(0, 1), y.flatten()).item()
    assert last["loss"] == pytest.approx(loss, rel=1e-5)
    assert last["metrics"] == {"perplexity": pytest.approx(math.exp(loss), rel=1e-5)}
    assert loss < math.log(len(task.classes)) + 1


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("gpt-shakespeare", {"out.weight", "down.weight"}),
        pytest.param("llama-docs", {"self_attn.o_proj.weight", "mlp.down_proj.weight"}, marks=pytest.mark.slow),
    ],
)
def test_resist_scales_all_that_a_layer_adds_to_the_stream(name, branches):
    recipe = RECIPES[name]()
    _, plan = recipe.model(configure(name, "resist", {"model.layers": 3}), {"vocabulary": 11, "block": 6})
    expected = {f"{layer}.{branch}": unit for layer, unit in plan.blocks.items() for branch in branches}
    assert len(plan.blocks) == 3
    assert plan.scaled == expected


def test_a_relay_of_gpts_goes_on_as_one_that_never_stopped(tmp_path):
    settings = GPT | STREAM_TOO | {"schedule": "constant"}
    for folder, rounds, resume in (("once", 2, False), ("twice", 1, False), ("twice", 2, True)):
        config = configure("gpt-shakespeare", "relay", settings | {"rounds": rounds})
        run(config, tmp_path / folder, Serial(), resume=resume)
    once, twice = (load_run(tmp_path / name).metrics[-1] for name in ("once", "twice"))
    assert (once["loss"], once["metrics"]) == (twice["loss"], twice["metrics"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["relay", "ddp"])
def test_the_command_line_trains_in_processes(tmp_path, text, method):
    own = STREAM_TOO if method == "relay" else {}
    settings = words({**GPT, **own, "data.file": text, "runtime": "processes"})
    assert call(["train", "gpt-shakespeare", "--method", method, *settings, "--out", str(tmp_path / "run")]) == (0, "")
    last = load_run(tmp_path / "run").metrics[-1]
    assert last["metrics"]["perplexity"] == pytest.approx(math.exp(last["loss"]), rel=1e-5)


def test_nets_of_kinds_of_text_as_a_mixture_are_better_than_their_mean(tmp_path):
    longer = {"rounds": 2, "local_steps": 25, "split": "by_label", "batch_size": 16, "optimizer.lr": 0.02}
    config = configure("gpt-shakespeare", "ensemble", GPT | STREAM_TOO | longer)
    recipe = RECIPES["gpt-shakespeare"]()
    kinds = recipe.task(config).split_by
    assert (
        kinds[:200].unique().tolist() != kinds[-200:].unique().tolist()
    )  # the text changes from one kind to the other
    run(config, tmp_path / "run", Serial(), resume=False)
    mean, (x, y) = load(tmp_path / "run").model, recipe.task(config).train
    losses = [evaluate(net, next_token_loss, (x[::9], y[::9])).loss for net in (Mixture(mean.nets), mean)]
    assert losses[0] < losses[1]


def test_perplexity_is_exp_of_the_mean_loss_however_samples_are_batched():
    logits, y = torch.randn(7, 5, 9), torch.randint(9, (7, 5))
    expected = F.cross_entropy(logits.flatten(0, 1), y.flatten()).exp().item()
    for size in (7, 3, 1):
        perplexity = Perplexity(next_token_loss)
        for part in torch.arange(7).split(size):
            perplexity.update(logits[part], y[part])
        assert perplexity.compute() == pytest.approx(expected, rel=1e-5)
        perplexity.reset()
    perplexity.update(torch.full((1, 1, 9), 2000.0).index_fill(2, torch.tensor(0), 0.0), torch.zeros(1, 1).long())
    assert perplexity.compute() < math.inf


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("narrow", {"data.block": 600}, "the text to validate with: [0-9]+ tokens, expected at least 601"),
        ("narrow", {"data.block": 0}, r"data.block=0: expected a whole number from 1"),
        ("narrow", {"data.characters": 7}, "the text to train on: 7 tokens, expected at least 11"),
        ("relay", STREAM_TOO | {"model.groups": 3}, "grouped_norms=3: the norm .* is over 16 features"),
        ("relay", {"model.groups": 1}, "tokens.weight is on every worker, so subnets are not independent nets"),
        ("ist", {"workers": 3}, "2 units for 3 workers, expected at least one per worker"),
        ("narrow", {"model.deal": "heads"}, "unknown model.deal 'heads'; known: units, layers"),
    ],
)
def test_wrong_settings_are_told_in_one_line(tmp_path, method, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        run(configure("gpt-shakespeare", method, GPT | settings), tmp_path / "run", Serial(), resume=False)
    assert "\n" not in str(error.value)


LLAMA = GPT | {"data.vocabulary": 270}


@pytest.mark.slow  # importing transformers takes longer than all else here
@pytest.mark.parametrize("method", ["relay", "ist", "narrow", "resist", "local_sgd"])
def test_a_llama_learns_byte_pairs_and_its_folder_has_the_tokenizer(tmp_path, text, method):
    own = {"relay": STREAM_TOO, "resist": {"model.layers": 2}}.get(method, {})
    settings = LLAMA | {"data.file": str(text)} | own
    config = configure("llama-docs", method, settings)
    run(config, tmp_path / "run", Serial(), resume=False)
    task = RECIPES["llama-docs"]().task(config)
    text.unlink()
    predictor = load(tmp_path / "run")
    tokenizer = Tokenizer.from_str(predictor.signature.tokenizer)
    assert tokenizer.decode(task.test[0][0].tolist()) in TEXT
    assert [tokenizer.token_to_id(token) for token in predictor.classes] == list(range(270))
    x, y = task.test
    loss = F.cross_entropy(predictor.outputs(x).flatten(0, 1), y.flatten()).item()
    assert load_run(tmp_path / "run").metrics[-1]["loss"] == pytest.approx(loss, rel=1e-5)


def test_texts_are_cut_into_parts_of_which_every_tenth_validates(text):
    task, again = (
        RECIPES["llama-docs"]().task(configure("llama-docs", "ist", LLAMA | {"data.file": str(text)})) for _ in range(2)
    )
    tokenizer = Tokenizer.from_str(task.tokenizer)
    train, val = (tokenizer.decode(each[0].flatten().tolist()) for each in (task.train, task.test))
    part = len(TEXT) // 10
    assert TEXT[9 * part : 10 * part].startswith(val[: len(val) // 2])
    assert TEXT.startswith(train[: 8 * part])
    assert task.tokenizer == again.tokenizer  # a resumed run has the same tokens
    few = configure("llama-docs", "ist", LLAMA | {"data.file": str(text), "data.characters": len(TEXT) // 3})
    less = RECIPES["llama-docs"]().task(few)
    assert 0.2 < less.train[0].numel() / task.train[0].numel() < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.vocabulary": 200}, "data.vocabulary=200: expected at least 256, a token for each byte"),
        (
            {"data.vocabulary": 260, "data.tokenizer": "tokenizer.json"},
            "tokenizer.json: 270 tokens, more than the rows",
        ),
        ({"data.tokenizer": "text.txt"}, "text.txt: no tokenizer.json of the library tokenizers"),
        ({"data.file": "nowhere.txt"}, "nowhere.txt: can't be read (No such file or directory)"),
        ({"data.file": ""}, "data set 'python-docs' is not on this machine"),
        ({"data.block": 600}, "the text to validate with: "),
        ({"data.characters": 5}, "the text to train on: 5 tokens, expected at least 11"),
    ],
)
def test_wrong_texts_and_tokenizers_are_told_in_one_line(text, monkeypatch, settings, message):
    monkeypatch.chdir(text.parent)
    given = LLAMA | {"data.file": "text.txt"}
    task = RECIPES["llama-docs"]().task(configure("llama-docs", "ist", given))
    (text.parent / "tokenizer.json").write_text(task.tokenizer)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        RECIPES["llama-docs"]().task(configure("llama-docs", "ist", given | settings))
    assert "\n" not in str(error.value)
