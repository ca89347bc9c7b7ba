"""Every recipe runs, with each method, on small data of the same kind."""

import archives
import numpy as np
import pytest
import torch

from skerry import load, train
from skerry.callbacks import Callback
from skerry.experiments.cli import call
from skerry.experiments.config import Config
from skerry.experiments.datasets.depends import debian_depends, most_frequent
from skerry.experiments.methods import METHODS, build
from skerry.experiments.models.bag import BagMLP
from skerry.experiments.recipes import RECIPES
from skerry.experiments.recipes.depends_xc import several_labels
from skerry.experiments.reports.comparison import load_run
from skerry.experiments.runs.execute import configure, make_optimizer, run
from skerry.runtimes.serial import Serial
from skerry.weights import FromInitializer, materialize

QUICK = {"rounds": 2, "local_steps": 2, "batch_size": 8, "workers": 2, "threads": 1}
MLP = {"model.hidden": 12}
RESNET = {"model.width": 4, "data.images": 50}
SMALL = {
    "digits-mlp": MLP,
    "speech-mlp2": MLP,
    "speech-mlp3": MLP,
    "depends-xc": MLP,
    "resnet18-cifar": RESNET,
    "resist-cifar": RESNET | {"model.blocks": [1, 1, 5, 1]},
}
FEW = {"ist", "resist"}  # of recipes other than digits-mlp, which is tried with all
MORE = {
    "vgg-cifar": {"model.width": 4, "model.hidden": 12, "data.images": 50},
    "skewed-resnet": RESNET,
    "loft-cifar": RESNET,
}


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        pytest.param(recipe, method, marks=[] if recipe == "digits-mlp" or method in FEW else [pytest.mark.slow])
        for recipe in SMALL
        for method in RECIPES[recipe]().methods
        if method != "ddp"
    ]
    + [
        ("vgg-cifar", "ist"),
        pytest.param("vgg-cifar", "narrow", marks=pytest.mark.slow),
        ("skewed-resnet", "ist"),
        ("loft-cifar", "ist"),
    ],  # else as resnet18-cifar
)
def test_recipes_run_with_every_method_and_are_loaded_without_their_data(tmp_path, monkeypatch, recipe, method):
    archives.make(tmp_path, monkeypatch)
    quick = {k: v for k, v in (QUICK | (SMALL | MORE)[recipe]).items() if method != "single" or k != "workers"}
    config = configure(recipe, method, quick)
    records = []
    keep = Callback(on_round=lambda session, record: records.append(record))
    run(config, tmp_path / "run", Serial(), resume=False, callbacks=[keep])
    assert len(records) == 2
    score = records[-1].score
    assert 0 < score.loss < 20
    names = {"P@1", "P@3", "P@5"} if recipe == "depends-xc" else set()
    assert score.metrics.keys() == names
    assert all(0 <= value <= 1 for value in score.metrics.values())
    task = RECIPES[recipe]().task(config)
    monkeypatch.setenv("SKERRY_DATA", str(tmp_path / "nowhere"))
    assert_loaded(tmp_path / "run", task, score.metrics.get("P@1", score.accuracy))


def assert_loaded(folder, task, right):
    """What the run's folder predicts for samples as they are stored is right as often as the run said."""
    predictor, (x, y) = load(folder), task.test
    found, y = predictor.predict(x, batch_size=7), y.numpy().reshape(len(x), -1)
    names = predictor.classes[y.clip(min=0)]
    assert ((names == found[:, None]) & (y >= 0)).any(1).mean() == pytest.approx(right)
    assert isinstance(found[0], np.str_ if isinstance(task.classes, tuple) else np.int64)


def test_loft_deals_out_the_filters_that_the_paper_does():
    """In proportion to local SGD two and four workers send 40 of 55.4 GB and 64.6 of 110.8 (arXiv 2210.16169)."""
    model, plan = RECIPES["loft-cifar"]().net(configure("loft-cifar", "ist", {}), {})
    assert [axis.name for axis in plan.axes] == ["stages.1.1", "stages.2.1", "stages.3.1"]
    dealt = sum(p.numel() for name, p in model.named_parameters() if name in plan.dims)
    share = dealt / sum(p.numel() for p in model.parameters())
    assert 1 - share * (1 - 1 / 2) == pytest.approx(40.0 / 55.4, abs=0.01)
    assert 1 - share * (1 - 1 / 4) == pytest.approx(64.6 / 110.8, abs=0.01)
    with pytest.raises(ValueError, match=r"model\.blocks=\[2, 1\]: expected a stage after the first"):
        RECIPES["loft-cifar"]().net(configure("loft-cifar", "ist", {"model.blocks": [2, 1]}), {})


def test_ddp_runs_in_processes_and_counts_the_bytes_of_gradients(tmp_path):
    words = [w for key, value in (QUICK | MLP).items() for w in ("--set", f"{key}={value}")]
    code, told = call(["train", "digits-mlp", "--method", "ddp", "--out", str(tmp_path / "run"), *words])
    assert (code, told) == (0, "")
    run = load_run(tmp_path / "run")
    assert run.config["runtime"] == "processes"
    weights = 64 * 12 + 12 * 12 + 4 * 12 + 12 * 10 + 10
    assert run.metrics[-1]["bytes_due"] > 4 * 4 * weights  # four steps, 2 (n - 1) / n = 1 of their size each
    task = RECIPES["digits-mlp"]().task(configure("digits-mlp", "ddp", {}))
    assert_loaded(tmp_path / "run", task, run.metrics[-1]["accuracy"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_have_settings_for_every_method_that_fits(recipe):
    built = RECIPES[recipe]()
    assert isinstance(built.config, Config)
    assert built.config.recipe == recipe
    of_blocks = {"resist", "narrow", "local_sgd", "diloco", "ddp", "single"}
    # A stream that all workers hold makes no independent nets.
    of_nets = {"relay", "ensemble"} if recipe in ("resnet18-cifar", "loft-cifar", "skewed-resnet") else set()
    late = {"asyncdrop", "fedbuff"}  # for clients of unlike speeds
    others = METHODS.keys() - ({"resist"} if recipe not in ("gpt-shakespeare", "llama-docs") else set()) - of_nets
    of_clients = {*late, "local_sgd", "ist", "relay", "narrow"}
    private = {"ist", "relay", "narrow", "ensemble", "local_sgd", "single"}
    some = {"resist-cifar": of_blocks, "async-fashion": of_clients, "private-fashion": private}
    assert built.methods.keys() == some.get(recipe, others - late)
    assert built.config.method in built.methods
    for method in METHODS:
        if method in built.methods:
            configure(recipe, method, {})
        else:
            with pytest.raises(ValueError, match=f"method '{method}': recipe '{recipe}' has no settings for it"):
                configure(recipe, method, {})


def test_a_recipe_is_trained_by_its_own_method_unless_told(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    settings = QUICK | SMALL["resist-cifar"]
    words = [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]
    assert call(["train", "resist-cifar", "--out", str(tmp_path / "run"), *words]) == (0, "")
    assert load_run(tmp_path / "run").config["method"] == "resist"
    compare = ["compare", "resist-cifar", "--out", str(tmp_path / "all"), "--set"]
    for method in ("resist", "narrow"):
        assert "expected at least 1" in call([*compare, f"{method}.rounds=0"])[1]
    assert "'ist' is not among the --methods" in call([*compare, "ist.rounds=0"])[1]


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


@pytest.mark.parametrize("recipe", RECIPES)
def test_skewed_recipes_adjust_all_methods_by_priors_and_others_none(recipe):
    found = {configure(recipe, method, {}).prior_adjusted for method in RECIPES[recipe]().methods}
    assert found == {recipe in ("skewed-mlp", "skewed-resnet", "async-fashion")}


@pytest.mark.filterwarnings("ignore:parts")  # so few samples are warned of
@pytest.mark.parametrize("recipe", ["digits-mlp", "speech-mlp2", "resnet18-cifar"])
def test_workers_have_a_prior_for_each_logit(tmp_path, monkeypatch, recipe):
    archives.make(tmp_path, monkeypatch)
    few = {"data.images": 50} if recipe == "resnet18-cifar" else {}
    config = configure(recipe, "local_sgd", {"prior_adjusted": True, "split": "by_label", **few})
    built = RECIPES[recipe]().build(config)
    logits = built.model(torch.empty_like(built.data.sample(0, 2), device="meta"))
    assert built.logit_adjustment.shape == (4, logits.shape[1])
    labels = torch.cat([y for _, y in built.data.batches(2, 0, 20)])
    assert set(built.logit_adjustment[2].topk(len(labels.unique())).indices.tolist()) == set(labels.tolist())
    assert RECIPES[recipe]().build(config.change({"prior_adjusted": False})).logit_adjustment is None


def test_several_labels_a_sample_have_no_priors(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    config = configure("depends-xc", "ist", {"prior_adjusted": True})
    words = "prior_adjusted=true: the targets of recipe 'depends-xc' are not single classes.*expected false"
    with pytest.raises(ValueError, match=words):
        RECIPES["depends-xc"]().build(config)


def test_a_recipe_of_images_takes_the_first_ones(tmp_path, monkeypatch):
    labels = archives.make(tmp_path, monkeypatch)["cifar10_jpeg_train.npz"]["label"]
    config = configure("resnet18-cifar", "ist", {"data.images": 20, "workers": 1, "batch_size": 20})
    ((x, y),) = RECIPES["resnet18-cifar"]().build(config).data.batches(0, 0, 1)
    assert x.shape == (20, 3, 32, 32)
    assert sorted(y.tolist()) == sorted(labels[:20].tolist())


def all_samples(recipe, settings):
    """Return what all workers together see in an epoch, as pairs of lists, sorted; with the job."""
    job = RECIPES[recipe]().build(configure(recipe, "ist", settings | {"workers": 1, "batch_size": 1}))
    num = len(job.data.sample(0, 10**6))
    pairs = [(x[0].tolist(), y[0].tolist()) for x, y in job.data.batches(0, 0, num)]
    return sorted(pairs), job


def test_fewer_samples_are_the_first_of_one_shuffle_for_all_seeds():
    few, more = (all_samples("digits-mlp", {"data.samples": num})[0] for num in (20, 50))
    assert (len(few), len(more)) == (20, 50)
    assert all(pair in more for pair in few)
    assert len({label for _, label in more}) == 10  # shuffled before
    assert all_samples("digits-mlp", {"data.samples": 20, "seed": 3})[0] == few
    everything, job = all_samples("digits-mlp", {})
    assert all(pair in everything for pair in more)
    assert all_samples("digits-mlp", {"data.samples": len(everything)})[0] == everything
    assert len(job.test[1]) == 1797 - len(everything)  # the test set is never cut


def test_a_run_of_before_there_was_a_number_of_samples_has_all():
    config = configure("digits-mlp", "ist", {})
    old = Config.from_json({**config.to_json(), "data": {}})
    data = [RECIPES["digits-mlp"]().build(c).data.sample(0, 10**6) for c in (old, config)]
    assert torch.equal(*data)


def test_fewer_labels_are_the_most_frequent_and_samples_without_any_go(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    task = debian_depends()
    rows = [[label for label in row if label >= 0] for row in task.y_train.tolist()]
    counts = [sum(label in row for row in rows) for label in range(25)]
    order = sorted(range(25), key=lambda label: -counts[label])  # stable, as sorts are
    less = most_frequent(task, 6)
    for x, y, old_x, old_y in (
        (less.x_train, less.y_train, task.x_train, task.y_train),
        (less.x_test, less.y_test, task.x_test, task.y_test),
    ):
        kept = [[order.index(label) for label in row if label in order[:6]] for row in old_y.tolist()]
        assert [[label for label in row if label >= 0] for row in y.tolist()] == [row for row in kept if row]
        assert x.tolist() == [words for words, row in zip(old_x.tolist(), kept, strict=True) if row]
        assert (y[:, 0] >= 0).all()
        assert 0 < len(y) < len(old_y)
    assert most_frequent(task, 25) is task
    pairs, job = all_samples("depends-xc", {"data.labels": 6, "data.samples": 11, "model.hidden": 12})
    assert len(pairs) == 11
    assert job.model.out.weight.shape == (6, 12)
    assert torch.equal(job.test[1], less.y_test)
    quick = QUICK | {"data.labels": 6, "data.samples": 20, "split": "by_label"} | MLP
    run(configure("depends-xc", "ist", quick), tmp_path / "run", Serial(), resume=False)
    assert 0 <= load_run(tmp_path / "run").metrics[-1]["metrics"]["P@5"] <= 1


@pytest.mark.parametrize(
    ("recipe", "setting", "words"),
    [
        ("digits-mlp", {"data.samples": -1}, "data.samples=-1: expected 0 (all) or a whole number from 1 to 1"),
        ("digits-mlp", {"data.samples": 9999}, "data.samples=9999: expected 0 (all) or a whole number from 1 to 1"),
        ("digits-mlp", {"data.samples": "few"}, "data.samples='few': expected 0 (all) or a whole number"),
        ("depends-xc", {"data.samples": 61}, "data.samples=61: expected 0 (all) or a whole number from 1 to 60"),
        ("depends-xc", {"data.labels": 4}, "data.labels=4: expected 0 (all) or a whole number from 5 to 25"),
        ("vgg-cifar", {"data.images": 61}, "data.images=61: expected at most 60"),
        ("vgg-cifar", {"data.images": 0}, "data.images=0: expected a whole number from 1"),
        ("vgg-cifar", {"data.images": 60, "model.convs": 3}, "model.convs=3: expected a list of whole numbers"),
        ("resnet18-cifar", {"data.images": 60, "model.width": 1.5}, "model.width=1.5: expected a whole number from 1"),
        ("resist-cifar", {"data.images": 60, "model.blocks": [2, 2, 1]}, "expected at least 2 blocks in section 3"),
    ],
)
def test_wrong_settings_of_data_and_models_are_told(tmp_path, monkeypatch, recipe, setting, words):
    archives.make(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r".") as error:
        RECIPES[recipe]().build(configure(recipe, "local_sgd", setting))
    assert words in str(error.value)


def test_an_unknown_setting_of_the_data_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown setting of the data: data\. 'image'; did you mean 'images'"):
        configure("vgg-cifar", "ist", {"data.image": 5})
    for recipe in ("fashion-mlp", "mnist-mlp", "skewed-mlp", "digits-mlp", "depends-xc"):
        with pytest.raises(ValueError, match="did you mean 'samples'"):
            configure(recipe, "ist", {"data.sample": 5})


def test_a_worker_of_resist_costs_what_its_narrow_rival_costs(tmp_path, monkeypatch):
    archives.make(tmp_path, monkeypatch)
    costs = {}
    for method in ("resist", "narrow"):
        small = {"rounds": 1, "local_steps": 1, "batch_size": 8, "data.images": 60, "model.width": 4}
        config = configure("resist-cifar", method, small)
        built = RECIPES["resist-cifar"]().build(config)
        result = train(
            built.model, built.loss_fn, built.data, plan=built.plan, algorithm=build(config),
            optimizer=make_optimizer(config), num_rounds=1, start=built.start,
        )  # fmt: skip
        costs[method] = result.step_cost
    assert costs["resist"] == costs["narrow"]
