"""``skerry prune`` on digits: what it writes is loaded by torch alone and by ``skerry.load``, and says the same."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import skerry
from skerry.experiments.cli import call
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configure, run
from skerry.experiments.runs.pruned import prune_run
from skerry.runtimes import Serial

SETTINGS = {"rounds": 3, "local_steps": 5, "workers": 2, "threads": 1, "eval_every": 0, "model.hidden": 16}
DIGITS = find_recipe("digits-mlp")
TASK = DIGITS.task(configure("digits-mlp", "ist", {}))
RAW = TASK.test[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(configure("digits-mlp", "ist", SETTINGS), folder, Serial(), resume=False)
    return folder


def test_a_pruned_model_is_loaded_by_torch_alone_and_without_the_code_that_trained_it(folder, capsys):
    assert call(["prune", str(folder), "--keep", "0.5"]) == (0, "")
    assert "h0: 8 of 16 units" in capsys.readouterr().out
    _, plan = DIGITS.net(configure("digits-mlp", "ist", SETTINGS), TASK.sizes)
    expected = skerry.prune(skerry.load(folder).model, plan, 0.5)
    loaded = skerry.load(folder / "pruned-0.5")
    assert (loaded.round, loaded.num_rounds) == (3, 3)
    x = loaded.signature.inputs(RAW)
    assert torch.equal(loaded.outputs(RAW), expected(x))
    assert [layer.out_features for layer in loaded.model.layers] == [8, 8]
    program = torch.export.load(folder / "pruned-0.5" / "model.pt2").module()  # any number of samples
    for samples in (x, x[:1]):
        torch.testing.assert_close(program(samples), expected(samples))


@pytest.fixture
def no_program(monkeypatch):
    """Importing what torch.export needs takes seconds."""

    def fail(*args, **kwargs):
        raise RuntimeError("branches on values")

    monkeypatch.setattr(torch.export, "export", fail)


@pytest.mark.usefixtures("no_program")
def test_axes_by_name_and_a_folder_of_ones_own(folder, tmp_path, capsys):
    words = ["prune", str(folder), "--keep", ".25", "--axis", "h1", "--out", str(tmp_path / "small")]
    assert call(words) == (0, "")
    assert "h0: 16 of 16 units\nh1: 4 of 16 units\n" in capsys.readouterr().out
    assert [layer.out_features for layer in skerry.load(tmp_path / "small").model.layers] == [16, 4]
    about = json.loads((tmp_path / "small" / "pruned.json").read_text())
    (tmp_path / "small" / "pruned.json").write_text(json.dumps({**about, "units": {}}))
    with pytest.raises(ValueError, match=r"pruned\.json: damaged .*run skerry prune again"):
        skerry.load(tmp_path / "small")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "0.01"], "keep=0.01: leaves no unit of axis 'h0' (16 units)"),
        (["--keep", "2"], "keep=2.0: expected a fraction above 0, at most 1"),
        (["--keep", "0.5", "--axis", "h7"], "'h7' matches no axis"),
    ],
)
def test_what_cannot_be_pruned_is_told_in_one_line(folder, words, message):
    code, told = call(["prune", str(folder), *words, "--out", str(folder / "no")])
    assert code == 1
    assert message in told
    assert "\n" not in told
    assert not (folder / "no").exists()


@pytest.mark.parametrize("method", ["relay", "narrow"])
def test_narrow_nets_are_refused(tmp_path, method):
    run(configure("digits-mlp", method, {**SETTINGS, "rounds": 2}), tmp_path / "run", Serial(), resume=False)
    code, told = call(["prune", str(tmp_path / "run"), "--keep", "0.5"])
    assert (code, told.count("\n")) == (1, 0)
    assert f"method '{method}' trains narrow nets" in told


@pytest.mark.usefixtures("no_program")
def test_a_model_that_torch_cannot_follow_is_still_written(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"model\.pt2: not written.*branches on values"):
        prune_run(folder, tmp_path, 0.5)
    assert skerry.load(tmp_path).outputs(RAW).shape == (len(RAW), 10)


@pytest.mark.parametrize("words", [["prune", "--keep", "0.5"], ["export", "--format", "pretrained"]], ids=" ".join)
def test_a_run_is_not_overwritten(folder, words):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = call([words[0], str(folder), *words[1:], "--out", str(folder)])
    assert code == 1
    assert said == f"error: {folder}: holds a run, whose files would be overwritten; choose another --out"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*model.pt2. not written")
@pytest.mark.usefixtures("no_program")
def test_pruning_takes_no_more_operations_at_a_greater_width(folder, tmp_path):
    wider = configure("digits-mlp", "ist", {**SETTINGS, "model.hidden": 48})
    run(wider, tmp_path / "run", Serial(), resume=False)
    counts = []
    for trained in (folder, tmp_path / "run"):
        with Operations() as operations:
            prune_run(trained, tmp_path / "small", 0.5)
        counts.append(operations.num)
    assert counts[1] <= counts[0]
