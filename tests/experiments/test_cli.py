"""The command line, used as a user would: what it writes, and one clear line for each thing that can be wrong."""

import html
import json
import re
import shutil
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from machines import run_bare
from safetensors.torch import load_file
from stopped_runs import latest

from skerry import launch
from skerry.callbacks import Progress
from skerry.experiments import theory
from skerry.experiments.cli import EXTRA, call
from skerry.experiments.cli.commands import main
from skerry.experiments.reports import pictures
from skerry.experiments.runs.folder import RunFolder
from skerry.experiments.theory.quadratics import counterexample

QUICK = ["--set", "rounds=3", "--set", "local_steps=4", "--set", "eval_every=1", "--set", "threads=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "x"
    assert call(["train", "digits-mlp", "--workers", "3", "--out", str(out), *QUICK]) == (0, "")
    return out


@pytest.fixture
def finished(trained, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(trained, tmp_path / "x")


@pytest.fixture
def _bare_pictures(monkeypatch):
    """Drawing takes most of the time of a short run; ``test_report.py`` is about pictures."""
    monkeypatch.setattr(pictures, "_svg", lambda figure, salt: "<svg></svg>")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # said by dcp.load in one process
def test_export_writes_one_file_or_a_dcp_checkpoint(finished):
    expected = load_file(finished / "model.safetensors")
    for words, out in ((["--shard-mb", "0.01"], "many"), (["--shard-mb", "0"], "one"), (["--format", "dcp"], "dcp")):
        assert call(["export", str(finished), "--out", str(finished / out), *words]) == (0, "")
    assert len([*(finished / "many").iterdir()]) > 2
    assert [path.name for path in (finished / "one").iterdir()] == ["model.safetensors"]
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(state, checkpoint_id=finished / "dcp")
    for found in (load_file(finished / "one" / "model.safetensors"), state):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor)


def test_train_writes_all_its_files_and_a_table(finished):
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoint", "units.json", "summary.json", "model.json", "model.safetensors",
        "report.html", "lock",
    }  # fmt: skip
    config = json.loads((finished / "config.json").read_text())
    assert (config["recipe"], config["workers"], config["rounds"], config["seed"]) == ("digits-mlp", 3, 3, 0)
    assert set(config["versions"]) == {"skerry", "torch", "python"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert all(line["flop"] > 0 and line["bytes_due"] > 0 for line in lines)
    assert lines[-1]["accuracy"] > 0.5  # chance is .1
    units = json.loads((finished / "units.json").read_text())
    assert [sum(axis["counts"]) for axis in units["axes"]] == [3 * 128, 3 * 128]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["parameters"]["subnet"] < summary["parameters"]["full"]
    assert load_file(finished / "model.safetensors")["out.weight"].shape == (10, 128)


@pytest.mark.usefixtures("_bare_pictures")
def test_resuming_a_finished_run_changes_nothing(finished):
    before = {name: (finished / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")}
    assert call(["train", "digits-mlp", "--out", str(finished), "--resume"]) == (0, "")
    for name, content in before.items():
        assert (finished / name).read_bytes() == content


def rows(folder, *names):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in names} for line in lines]


def test_an_extended_run_is_the_longer_one_in_all_its_files(tmp_path, capsys):
    words, longer, out = ["digits-mlp", *QUICK[2:], "--set", "schedule=constant"], tmp_path / "longer", tmp_path / "x"
    assert call(["train", *words, "--rounds", "4", "--out", str(longer)]) == (0, "")
    assert call(["train", *words, "--rounds", "2", "--out", str(out)]) == (0, "")
    capsys.readouterr()
    assert call(["train", "--resume", "--rounds", "4", "--out", str(out)]) == (0, "")
    assert "schedule now spans" not in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()
    same = ("round", "train_loss", "accuracy", "loss", "flop", "units_covered")
    assert rows(out, *same) == rows(longer, *same)
    assert rows(out, "bytes_due")[2:] == rows(longer, "bytes_due")[2:]  # round 1 was the last one before
    assert (out / "units.json").read_bytes() == (longer / "units.json").read_bytes()
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, longer))
    assert ours["accuracy"] == theirs["accuracy"]
    assert "4 rounds" in (out / "report.html").read_text()


@pytest.mark.usefixtures("_bare_pictures")
def test_an_extension_that_stops_leaves_an_unfinished_run(finished, monkeypatch):
    monkeypatch.setattr(RunFolder, "finish", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(["train", "--resume", "--rounds", "5", "--out", str(finished)])
    assert json.loads((finished / "config.json").read_text())["rounds"] == 5
    assert not (finished / "summary.json").exists()


@pytest.mark.usefixtures("_bare_pictures")
@pytest.mark.parametrize("method", ["ist", "local_sgd", "narrow"])
def test_a_run_goes_on_with_other_workers(tmp_path, method, capsys):
    out = tmp_path / "x"
    words = ["--method", method, "--workers", "2", *QUICK, "--set", "schedule=constant"]
    assert call(["train", "digits-mlp", *words, "--out", str(out)]) == (0, "")
    sizes = {name: tensor.shape for name, tensor in load_file(out / "model.safetensors").items()}
    assert call(["train", "--resume", "--workers", "3", "--rounds", "5", "--out", str(out)]) == (0, "")
    assert "with 3 workers after 2; data and units are dealt anew" in capsys.readouterr().err
    assert {name: tensor.shape for name, tensor in load_file(out / "model.safetensors").items()} == sizes
    assert rows(out, "round", "workers") == [{"round": k, "workers": 2 if k < 3 else 3} for k in range(5)]
    assert "2, then 3 workers trained" in (out / "report.html").read_text()


@pytest.mark.usefixtures("_bare_pictures")
@pytest.mark.parametrize(
    ("method", "words", "names"),
    [
        ("relay", ["--workers", "3", "--rounds", "5"], r"workers is 2.*got 3.*'relay' trains a net of its own"),
        ("ensemble", ["--workers", "1"], r"workers is 2.*got 1.*'ensemble' trains a net of its own"),
        ("diloco", ["--workers", "3", "--rounds", "5"], r"'diloco' keep optimizer state"),
        ("single", ["--workers", "2", "--rounds", "5"], r"workers is 1.*got 2.*'single' has one worker"),
        ("ist", ["--workers", "3"], r"3 workers.*saved with 2.*all 2 rounds are done"),
        ("ist", ["--rounds", "1"], r"num_rounds=1: 2 rounds are done"),
        ("ist", ["--set", "optimizer.lr=.3", "--rounds", "5"], r"optimizer is .*resume with the same"),
        ("ist", ["--set", "partition.capacities=[1,2]", "--rounds", "5"], r"partition is .*resume with the same"),
    ],
)
def test_a_run_that_cannot_go_on_says_why_and_stays_as_it_was(tmp_path, method, words, names):
    out = tmp_path / "x"
    workers = [] if method == "single" else ["--workers", "2"]
    quick = ["--rounds", "2", "--set", "local_steps=2", "--set", "threads=1"]
    assert call(["train", "digits-mlp", "--method", method, *workers, *quick, "--out", str(out)]) == (0, "")
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    code, message = call(["train", "--resume", *words, "--out", str(out)])
    assert code == 1
    assert re.search(names, message)
    assert "\n" not in message
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before


@pytest.mark.usefixtures("_bare_pictures")
def test_compare_extends_what_it_has_finished(tmp_path):
    words = ["compare", "digits-mlp", "--methods", "ist,narrow", "--set", "local_steps=3", "--set", "threads=1"]
    words += ["--set", "schedule=constant", "--out", str(tmp_path), "--rounds"]
    assert call([*words, "2"]) == (0, "")
    assert call([*words, "3", "--resume"]) == (0, "")
    for method in ("ist", "narrow"):
        assert [row["round"] for row in rows(tmp_path / method, "round")] == [0, 1, 2]


@pytest.mark.usefixtures("_bare_pictures")
def test_a_run_of_before_there_were_priors_is_one_without(finished):
    """Its config and its checkpoint do not tell of them."""
    path = finished / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("prior_adjusted") is False
    assert "prior_adjusted" not in (latest(finished) / "index.json").read_text()
    path.write_text(json.dumps(config))
    code, message = call(["train", "--out", str(finished), "--resume", "--set", "prior_adjusted=true"])
    assert code == 1
    assert re.search(r"prior_adjusted.*\bFalse\b.*\bTrue\b", message)
    assert call(["train", "--out", str(finished), "--resume"]) == (0, "")
    assert json.loads(path.read_text())["prior_adjusted"] is False


@pytest.mark.usefixtures("_bare_pictures")
def test_priors_help_where_workers_have_classes_of_their_own(tmp_path):
    words = ["split=dirichlet:0.3", "partition.reshuffle=0.1", "rounds=5", "threads=1"]
    words = [w for setting in words for w in ("--set", setting)]
    accuracy = {}
    for adjusted in ("false", "true"):
        out = tmp_path / adjusted
        more = [*words, "--set", f"prior_adjusted={adjusted}"]
        assert call(["train", "digits-mlp", "--out", str(out), *more]) == (0, "")
        accuracy[adjusted] = json.loads((out / "summary.json").read_text())["accuracy"]
    assert accuracy["true"] > accuracy["false"]


def test_compare_goes_on_after_a_method_that_fails(tmp_path):
    out, words = tmp_path / "cmp", ["--methods", "ist,narrow", "--set", "ist.optimizer.lr=1e38", "--set", "threads=1"]
    code, message = call(["compare", "digits-mlp", *words, "--set", "rounds=5", "--out", str(out)])
    assert (code, "not finite" in message) == (1, True)
    assert (out / "narrow" / "summary.json").exists()
    assert (out / "report.html").exists()


def test_a_relay_with_label_skew_is_warned_of_and_label_priors_help(tmp_path, capsys):
    words = ["--method", "relay", "--set", "split=by_label", "--set", "rounds=5", "--set", "threads=1"]
    found = {}
    for adjusted in ("false", "true"):
        out = tmp_path / adjusted
        assert call(["train", "digits-mlp", "--out", str(out), *words, "--set", f"prior_adjusted={adjusted}"]) == (
            0,
            "",
        )
        found[adjusted] = json.loads((out / "summary.json").read_text())["accuracy"]
        assert ("log_priors" in capsys.readouterr().err) == (adjusted == "false")  # not advised where they are there
    assert found["true"] > found["false"] + 0.1


ALL_WARN = ["--set", "rounds=2", "--set", "local_steps=4", "--set", "threads=1", "--set", "split=by_label"]
ALL_WARN += ["--set", "batch_size=500", "--set", "model.hidden=8", "--workers", "4"]


@pytest.mark.usefixtures("_bare_pictures")
@pytest.mark.parametrize("runtime", ["serial", pytest.param("processes", marks=pytest.mark.slow)])
def test_every_warning_is_one_line_and_in_the_report(tmp_path, capfd, monkeypatch, runtime):
    """Those of the data, those before training and those of a round: once, not by every process."""
    monkeypatch.setattr(sys.modules[launch.__module__], "_START", "spawn")  # a server would write to where it began
    arguments = ["digits-mlp", "--methods", "relay,ist", "--runtime", runtime, "--out", str(tmp_path), *ALL_WARN]
    assert call(["compare", *arguments]) == (0, "")
    told = capfd.readouterr().err.splitlines()
    assert not [line for line in told if "Warning" in line or "warnings.warn" in line]
    page = html.unescape((tmp_path / "report.html").read_text())
    for method, kinds in (("relay", ("parts[", "few rounds:", "bottleneck:")), ("ist", ("parts[", "bottleneck:"))):
        summary = json.loads((tmp_path / method / "summary.json").read_text())["warnings"]
        for kind in (*kinds, "label skew:"):
            (line,) = [line for line in told if line.startswith(f"digits-mlp {method}: warning: {kind}")]
            text = line.partition("warning: ")[2]
            assert text in summary.values()
            assert text in page
        assert len(summary) == len([line for line in told if line.startswith(f"digits-mlp {method}: warning: ")])


def test_compare_makes_one_table_of_all_methods(tmp_path, request):
    out = tmp_path / "cmp"
    arguments = [
        "compare",
        "digits-mlp",
        "--methods",
        "ist,local_sgd,narrow,single",
        "--seeds",
        "0,1",
        "--out",
        str(out),
    ]
    arguments += ["--set", "rounds=2", "--set", "local_steps=3", "--set", "local_sgd.local_steps=5"]
    arguments += ["--set", "partition.reshuffle=0.5", "--set", "threads=1"]
    assert call(arguments) == (0, "")
    assert len([p for p in out.iterdir() if p.is_dir()]) == 8
    configs = {p.name: json.loads((p / "config.json").read_text()) for p in out.iterdir() if p.is_dir()}
    assert configs["local_sgd-seed1"]["local_steps"] == 5
    assert configs["ist-seed1"]["partition"]["reshuffle"] == 0.5
    assert configs["single-seed0"]["workers"] == 1
    assert (out / "report.html").stat().st_size > 10_000
    shown = CliRunner().invoke(main, ["report", str(out), "--markdown"]).output
    for method in ("ist", "local_sgd", "narrow", "single"):
        assert method in shown
    stamp = (out / "ist-seed0" / "model.safetensors").stat().st_mtime_ns
    request.getfixturevalue("_bare_pictures")  # they have been drawn
    assert call([*arguments, "--resume"]) == (0, "")
    assert (out / "ist-seed0" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("_bare_pictures")
def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard")
    assert call(["train", "digits-mlp", "--out", str(tmp_path / "x"), "--tensorboard", *QUICK]) == (0, "")
    assert list((tmp_path / "x" / "tensorboard").glob("events*"))


@pytest.mark.usefixtures("_bare_pictures")
def test_another_optimizer_starts_from_its_own_defaults(tmp_path):
    arguments = ["train", "digits-mlp", "--out", str(tmp_path / "x"), "--set", "optimizer.name=AdamW", *QUICK]
    assert call(arguments) == (0, "")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["optimizer"] == {"name": "AdamW"}


def test_help_is_there_for_every_command():
    for command in ([], ["train"], ["compare"], ["report"], ["theory"], ["data"], ["data", "fetch"]):
        shown = CliRunner().invoke(main, [*command, "--help"])
        assert shown.exit_code == 0
        assert len(shown.output) > 100


def test_theory_prints_a_table_and_draws_a_picture(tmp_path):
    shown = CliRunner().invoke(main, ["theory", "counterexample", "--markdown", "--out", str(tmp_path)])
    assert shown.exit_code == 0
    assert re.search(r"\| `counterexample` \| L: [^|]+ \| > 0 \| 0\.0417 \|", shown.output)
    assert (tmp_path / "counterexample.png").read_bytes()[:4] == b"\x89PNG"


def test_a_claim_that_does_not_hold_is_an_error(tmp_path, monkeypatch):
    broken = {"counterexample": lambda: counterexample.check(over=0.5)}
    monkeypatch.setattr(theory, "THEOREMS", broken)
    code, message = call(["theory", "--out", str(tmp_path)])
    assert code == 1
    assert re.search(r"\bcounterexample\b", message)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "fashion-mpl", "--out", "O"], "'fashion-mpl'.*'fashion-mlp'"),
        (["train", "digits-mlp", "--out", "O", "--metod", "ist"], "--method"),
        (["train", "digits-mlp", "--out", "O", "--method", "its"], "'its'.*'ist'"),
        (["train", "digits-mlp", "--out", "O", "--set", "local_step=3"], "'local_step'.*'local_steps'"),
        (["train", "digits-mlp", "--out", "O", "--set", "partition.reshufle=3"], "'reshufle'.*'reshuffle'"),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.momentm=.9"], "SGD.*'momentm'.*'momentum'"),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.name=AdmaW"], "'AdmaW'.*'AdamW'"),
        (["train", "digits-mlp", "--out", "O", "--set", "model.hiden=3"], "model.*'hiden'.*'hidden'"),
        (["train", "digits-mlp", "--out", "O", "--set", "schedule=cosin"], "'cosin'.*'cosine'"),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.lr"], r"--set optimizer\.lr\b.*key=value"),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.lr=-1"], r"SGD.*'lr': -1\b"),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.lr=high"], r"optimizer\.lr=high\b.*SGD"),
        (["train", "digits-mlp", "--out", "O", "--set", "local_steps=0"], r"local_steps\b.*\b0\b"),
        (["train", "digits-mlp", "--out", "O", "--set", "local_steps=2.5"], r"local_steps\b.*\b2\.5\b"),
        (["train", "digits-mlp", "--out", "O", "--set", "partition.reshuffle=2"], r"reshuffle\b.*\b2\.0\b"),
        (
            ["train", "digits-mlp", "--out", "O", "--set", "partition.capacities=[1,2]"],
            r"(?=.*\b2\b)(?=.*\b4\b).*capacities",
        ),
        (["train", "digits-mlp", "--out", "O", "--set", "model.hidden=0"], r"model\.hidden\b.*\b0\b"),
        (["train", "digits-mlp", "--out", "O", "--set", "split=by_lable"], "'by_lable'.*'by_label'"),
        (["train", "digits-mlp", "--out", "O", "--set", "reshuffle=1"], r"'reshuffle'.*'partition\.reshuffle'"),
        (["train", "digits-mlp", "--out", "O", "--set", "lr=.1"], r"'lr'.*'optimizer\.lr'"),
        (
            ["train", "digits-mlp", "--out", "O", "--set", "partition.reshuffle=relay"],
            r"partition\.reshuffle\b.*'relay'",
        ),
        (
            ["train", "digits-mlp", "--out", "O", "--set", "prior_adjusted=1"],
            r"prior_adjusted\b.*\b1\b.*\btrue\b.*\bfalse\b",
        ),
        (
            ["train", "digits-mlp", "--out", "O", "--set", "optimizer_state=keep"],
            r"optimizer_state\b.*\bkeep\b.*\breset\b.*\btravel\b.*\bstay\b",
        ),
        (
            ["train", "digits-mlp", "--out", "O", "--method", "narrow", "--set", "partition.core=.5"],
            r"partition\.core\b.*'narrow'.*\bist\b",
        ),
        (
            ["train", "digits-mlp", "--out", "O", "--method", "single", "--workers", "4"],
            r"workers\b.*\b4\b.*'single'",
        ),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.name=LBFGS"], r"\bLBFGS\b"),
        (["train", "digits-mlp", "--out", "O", "--set", "timeout_s=Infinity"], r"timeout_s\b.*\binf\b"),
        (["train", "digits-mlp", "--out", "O", "--set", "rounds=2", "--rounds", "3"], r"--set rounds\b.*--rounds\b"),
        (
            ["train", "digits-mlp", "--out", "O", "--set", "rounds=2", "--set", "rounds=3"],
            r"--set rounds\b(?!.*--rounds)",
        ),
        (
            ["train", "digits-mlp", "--out", "O", "--method", "single", "--set", "optimizer_state=reset"],
            r"optimizer_state.*'single'.*\bist\b",
        ),
        (
            ["train", "digits-mlp", "--out", "O", "--method", "ddp", "--runtime", "serial"],
            r"runtime\b.*\bserial\b.*'ddp'.*processes",
        ),
        (["train", "digits-mlp", "--out", "O", "--method", "diloco", "--set", "outer.lr=0"], r"outer\W*lr\b.*\b0\b"),
        (
            ["train", "digits-mlp", "--out", "O", "--method", "fedrolex", "--set", "partition.step=0"],
            r"\bstep\b.*\b0\b",
        ),
        (
            ["compare", "digits-mlp", "--out", "O", "--methods", "single", "--set", "partition.step=2"],
            r"partition\.step\b.*--methods",
        ),
        (["compare", "digits-mlp", "--out", "O", "--set", "partition.stpe=2"], "'stpe'.*'step'"),
        (
            ["compare", "digits-mlp", "--out", "O", "--methods", "ist", "--set", "narrow.rounds=2"],
            r"narrow\.rounds\b.*--methods",
        ),
        (["compare", "digits-mlp", "--out", "O", "--seeds", "1,2", "--set", "seed=2"], r"\bseed\b.*--seeds"),
        (["train", "digits-mlp", "--out", "O", "--workers", "200"], r"(?=.*\b128\b)(?=.*\b200\b).*'h0'"),
        (["train", "digits-mlp", "--out", "O", "--resume"], r"\bO\b.*config\.json"),
        (["train", "digits-mlp", "--out", ""], r"--out.*empty"),
        (["train", "digits-mlp", "--out", "O", "--set", "optimizer.lr=nan"], r"optimizer\.lr=nan\b"),
        (
            ["train", "digits-mlp", "--out", "O", "--set", "optimizer.nesterov=yes"],
            r"optimizer\.nesterov=yes\b.*\btrue\b",
        ),
        (["train", "mnist-mlp", "--out", "O"], "skerry data fetch mnist"),
        (["data", "fetch", "mnits"], "'mnits'.*'mnist'"),
        (["data", "fetch", "fashion-mnist", "--from", "nowhere"], "nowhere.*fashion-mnist.*--from"),
        (["compare", "digits-mlp", "--out", "O", "--methods", "ist,narow"], "'narow'.*'narrow'"),
        (["compare", "digits-mlp", "--out", "O", "--seeds", "a,b"], "--seeds a,b"),
        (["report", "nowhere"], r"nowhere.*config\.json"),
        (["theory", "gits"], "'gits'.*'gist'"),
    ],
)
def test_each_mistake_gets_one_line(arguments, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKERRY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, message = call(arguments)
    assert code != 0
    assert re.search(names, message)
    assert "\n" not in message
    assert not (tmp_path / "O" / "checkpoint").exists()


def test_a_folder_in_use_is_left_alone(finished):
    out = str(finished)
    before = (finished / "config.json").read_bytes()
    code, message = call(["train", "digits-mlp", "--out", out])
    assert code == 1
    assert re.search(f"{re.escape(out)}.*--resume.*--out", message)
    code, message = call(["train", "digits-mlp", "--out", out, "--resume", "--set", "optimizer.lr=.5"])
    assert code == 1
    assert re.search(r"optimizer\b.*'lr': 0\.1\b.*'lr': 0\.5\b", message)
    code, message = call(["train", "mnist-mlp", "--out", out, "--resume"])
    assert code == 1
    assert re.search(f"{re.escape(out)}.*digits-mlp.*mnist-mlp", message)
    assert (finished / "config.json").read_bytes() == before


def test_a_folder_that_another_process_writes_to_is_refused(finished):
    import fcntl

    with (finished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, message = call(["train", "digits-mlp", "--out", str(finished), "--resume"])
    assert code == 1
    assert re.search(f"{re.escape(str(finished))}.*process.*--out", message)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("index.json", b"garbage", r"index\.json.*line 1 column 1"),
        ("index.json", b'{"format": "other", "round": 1, "checksums": []}', r"index\.json.*'skerry-checkpoint-"),
        ("0-of-1.safetensors", b"garbage", r"0-of-1\.safetensors.*header"),
        ("config.json", b"{", r"config\.json.*line 1 column 2"),
        ("config.json", b'{"recipe": "digits-mlp", "wokers": 3}', r"config\.json.*'wokers'.*'workers'"),
    ],
)
def test_a_damaged_run_is_refused_by_the_name_of_its_file(finished, name, content, names):
    (path,) = finished.rglob(name)
    path.write_bytes(content)
    code, message = call(["train", "digits-mlp", "--out", str(finished), "--resume"])
    assert code == 1
    assert re.search(names, message)
    assert "\n" not in message


@pytest.mark.usefixtures("_bare_pictures")
def test_divergence_stops_with_a_remedy_and_leaves_a_good_state(tmp_path):
    arguments = [
        "train",
        "digits-mlp",
        "--out",
        str(tmp_path / "x"),
        "--set",
        "optimizer.lr=1e30",
        "--set",
        "max_bad_rounds=2",
    ]
    code, message = call(arguments)
    assert code == 1
    assert re.search(r"round 1\b.*\b2\b.*0, 1, 2, 3", message)
    lines = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["refused"]


@pytest.mark.usefixtures("_bare_pictures")
def test_another_runs_checkpoint_is_refused(finished, tmp_path):
    other = tmp_path / "other"
    assert call(["train", "digits-mlp", "--workers", "3", "--seed", "5", "--out", str(other), *QUICK]) == (0, "")
    shutil.copytree(finished / "checkpoint", other / "checkpoint", dirs_exist_ok=True)
    code, message = call(["train", "--resume", "--out", str(other)])
    assert (code, str(latest(other) / "index.json") in message) == (1, True)


@pytest.mark.parametrize(
    ("every_s", "round", "kept"),
    [
        (1000, None, r"nothing of O is kept"),
        (1000, 2, r"O has no checkpoint yet.*beginning"),
        (0, 0, r"O has no checkpoint yet.*beginning"),
        pytest.param(0, 1, r"--resume continues O after round 1 of 3", marks=pytest.mark.slow),
        (0, 2, r"--resume continues O after round 2 of 3"),
    ],
)
@pytest.mark.parametrize("command", [["train"], ["compare", "--methods", "ist"]], ids=" ".join)
@pytest.mark.usefixtures("_bare_pictures")
def test_an_interrupt_promises_only_what_is_there(tmp_path, monkeypatch, command, every_s, round, kept):
    out = tmp_path / "O" if command == ["train"] else tmp_path / "O" / "ist"
    arguments = [*command, "digits-mlp", "--out", str(tmp_path / "O"), *QUICK, "--set", f"checkpoint_every_s={every_s}"]

    def interrupt(self, session, record):
        if record.round == round:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if round is None:
            patched.setattr(RunFolder, "on_start", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(Progress, "on_round", interrupt)
        code, message = call(arguments)
    assert code == 130
    assert re.fullmatch(rf"interrupted \({kept.replace('O', str(out), 1)}.*\)", message), message
    assert call(arguments if "nothing" in kept else [*arguments, "--resume"]) == (0, "")


@pytest.mark.parametrize(
    "package", [pytest.param(p, marks=[pytest.mark.slow] if k else []) for k, p in enumerate(EXTRA)]
)
def test_without_the_extra_one_line_says_what_to_install(package, tmp_path):
    code = f"import sys; sys.modules['{package}'] = None; from skerry.experiments.cli import entry; entry()"
    module = f"import runpy, sys; sys.modules['{package}'] = None; runpy.run_module('skerry', run_name='__main__')"
    for program in (code, module):
        code, told = run_bare(tmp_path, program)
        assert code == 1
        assert re.fullmatch(rf"skerry: error: {package}\b.*pip install 'skerry\[experiments\]'\n", told)
