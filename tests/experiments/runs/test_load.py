"""``skerry.load`` on digits, against the run that it loads; other recipes and methods are in ``test_recipes.py``."""

import json
import re
import shutil

import pytest
import torch
from machines import run_bare

import skerry
from skerry.callbacks import Callback
from skerry.experiments.cli import call
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configure, run
from skerry.experiments.runs.folder import FolderInUse, check_folder, keep_config, saved_config
from skerry.experiments.runs.load import export_run
from skerry.runtimes import Serial
from skerry.weights import FromFiles

QUICK = {"rounds": 3, "local_steps": 3, "workers": 2, "threads": 1, "eval_every": 1, "schedule": "constant"}
MORE = {"model.hidden": 16, "checkpoint_every_s": 0}
RAW, CLASSES = find_recipe("digits-mlp").task(configure("digits-mlp", "ist", {})).test


class Stopped(Exception):
    """Ends a run at once."""


def train(folder, method="ist", stop=None, resume=False, **settings):
    def on_round(session, record):
        if record.round == stop:
            raise Stopped

    config = configure("digits-mlp", method, QUICK | MORE | settings)
    stopping = Callback(on_round=on_round)
    stopping.reports = True  # after the run folder
    run(config, folder, Serial(), resume=resume, callbacks=[stopping])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(folder)
    return folder


def test_a_finished_run_needs_its_weights_and_two_small_files(trained, tmp_path):
    for name in ("config.json", "model.json", "model.safetensors", "summary.json"):
        shutil.copy(trained / name, tmp_path / name)
    digits = skerry.load(tmp_path)
    assert (digits.round, digits.num_rounds) == (3, 3)
    accuracy = json.loads((trained / "summary.json").read_text())["accuracy"]
    assert (digits.predict(RAW) == CLASSES.numpy()).mean() == pytest.approx(accuracy)
    scaled = digits.signature.scaling(RAW)
    assert torch.equal(digits.model(scaled), digits.outputs(RAW))  # the bare model
    assert "after round 3 of 3" in repr(digits)


@pytest.mark.parametrize("method", ["ist", "relay", "narrow", "diloco", "fedrolex"])
def test_an_unfinished_run_is_the_model_of_its_last_checkpoint(tmp_path, method):
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", method, stop=2)
    train(tmp_path / "shorter", method, rounds=2)
    with pytest.warns(UserWarning, match=r"stopped: not finished.* 2 of 3"):
        found = skerry.load(tmp_path / "stopped")
    assert (found.round, found.num_rounds) == (2, 3)
    assert torch.equal(found.outputs(RAW), skerry.load(tmp_path / "shorter").outputs(RAW))
    assert export_run(tmp_path / "stopped", tmp_path / "exported") == 2
    exported = FromFiles(tmp_path / "exported", found.model)
    for name, parameter in found.model.named_parameters():
        assert torch.equal(exported.read(name), parameter)


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        ("ist", {}, {}),
        ("ist", {"partition.capacities": [1, 2]}, {"partition.capacities": [1, 1, 2]}),
        ("heterofl", {"partition.fractions": [1, 0.5]}, {"partition.fractions": [1, 0.25, 0.25]}),
        ("heterofl", {"partition.fractions": [1, 0.5]}, {"partition.fractions": None}),
    ],
)
def test_a_run_that_has_just_gone_on_with_other_workers_is_still_that_of_the_others(tmp_path, method, old, new):
    train(tmp_path, method, **old)
    before = skerry.load(tmp_path).outputs(RAW)
    with pytest.raises(Stopped):
        train(tmp_path, method, stop=3, resume=True, rounds=5, workers=3, **new)
    with pytest.warns(UserWarning, match=r"not finished.* 3 of 5"):
        assert torch.equal(skerry.load(tmp_path).outputs(RAW), before)
    assert export_run(tmp_path, tmp_path / "exported") == 3


def test_what_is_no_run_or_not_yet_one_is_named(trained, tmp_path):
    with pytest.raises(ValueError, match=rf"{trained.parent}: no run.*{trained.name}"):
        skerry.load(trained.parent)
    with pytest.raises(Stopped):
        train(tmp_path / "begun", stop=0)
    with pytest.raises(ValueError, match=r"begun: no checkpoint yet"):
        skerry.load(tmp_path / "begun")
    broken = shutil.copytree(trained, tmp_path / "broken")
    (broken / "model.json").write_text('{"shape": 3}')
    with pytest.raises(ValueError, match=r"model\.json: damaged"):
        skerry.load(broken)
    (broken / "model.json").unlink()  # as in runs of older versions
    assert torch.equal(skerry.load(broken).outputs(RAW), skerry.load(trained).outputs(RAW))


def test_a_run_that_never_began_leaves_its_folder_usable(trained, tmp_path):
    for name in ("config.json", "model.json"):
        shutil.copy(trained / name, tmp_path / name)
    (tmp_path / "metrics.jsonl").touch()
    config = saved_config(trained)
    check_folder(tmp_path, config, resume=False)
    shutil.copy(trained / "metrics.jsonl", tmp_path)
    with pytest.raises(FolderInUse):
        check_folder(tmp_path, config, resume=False)


def test_settings_of_another_run_are_not_replaced(trained, tmp_path):
    config = saved_config(trained)
    keep_config(tmp_path, config)
    keep_config(tmp_path, config.change({"rounds": 9}))  # a run goes on with more rounds
    assert saved_config(tmp_path).rounds == 9
    with pytest.raises(FolderInUse, match=r"other settings.*--out"):
        keep_config(tmp_path, config.change({"seed": 9}))


def test_loading_needs_no_extra(trained, tmp_path):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('click', 'rich', 'matplotlib', 'jinja2', 'sklearn', 'PIL')));"
        f"import skerry; print(skerry.load({str(trained)!r}).round)"
    )
    assert run_bare(tmp_path, code) == (0, "3\n")


def test_predict_prints_a_line_for_each_sample(trained, tmp_path, capsys):
    import numpy as np

    np.save(tmp_path / "x.npy", RAW.numpy())
    capsys.readouterr()
    assert call(["predict", str(trained), str(tmp_path / "x.npy")]) == (0, "")
    printed = capsys.readouterr().out.split()
    assert printed == skerry.load(trained).predict(RAW).astype(str).tolist()
    for content in (b"junk", b"PK\x03\x04"):
        (tmp_path / "x.npy").write_bytes(content)
        code, message = call(["predict", str(trained), str(tmp_path / "x.npy")])
        assert code == 1
        assert re.search(r"x\.npy: expected an array", message)
