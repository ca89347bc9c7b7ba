"""Files, trackers and progress against the records they are given.

Weights & Biases and MLflow are tiny fakes here, with the calls that are used of their API. Where the packages are
installed, they are run as well, offline (``test_the_real_...``).
"""

import csv
import json
import sys
import types

import pytest
import torch
from stopped_runs import Stopped
from torch.nn import functional as F
from zoo import blobs, mlp, sgd

from skerry import Checkpoints, ist, train
from skerry.callbacks import Callback, LogFile, MLflow, Progress, TensorBoard, WandB, figures
from skerry.runtimes import Serial
from skerry.training import Test

TEST = next(iter(blobs(1, batch=60, seed=5).batches(0, 0, 1)))
METRICS = {"P@1, top": lambda output, y: (output.argmax(1) == y).double()}


class Second(Serial):
    """As a process that is not the first one."""

    def __init__(self):
        super().__init__()
        self.rank = 1


def go(*callbacks, runtime=None, folder=None, resume=False, test=True, rounds=4):
    torch.manual_seed(1)
    model, plan, _ = mlp()
    checkpoints = Checkpoints(folder=folder, every_s=0, resume=resume) if folder else None
    return train(
        model, F.cross_entropy, blobs(2), plan=plan, algorithm=ist(2, local_steps=2), num_rounds=rounds,
        optimizer=sgd, test=Test(*TEST, every=2, metrics=METRICS) if test else None, runtime=runtime,
        checkpoints=checkpoints, callbacks=callbacks,
    )  # fmt: skip


def stop_after(round):
    def on_round(session, record):
        if record.round == round:
            raise Stopped

    callback = Callback(on_round=on_round)
    callback.reports = True  # after the loggers before it
    return callback


def read(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
    return [{name: float(v) if v not in ("", None) else None for name, v in row.items()} for row in rows]


def exact(rows):
    """All but times, and label skew, which a resumed session measures again."""
    return [{n: v for n, v in row.items() if not n.endswith("_s") and n != "diagnosis/label_skew"} for row in rows]


@pytest.mark.parametrize("name", ["deep/log.csv", "log.jsonl"])
def test_a_file_has_the_figures_of_each_round(tmp_path, name):
    path = tmp_path / name
    result = go(LogFile(path))
    assert read(path) == [{"round": record.round, **figures(record, METRICS)} for record in result.history]
    assert [row["P@1, top/test"] is None for row in read(path)] == [True, False, True, False]
    go(LogFile(path), rounds=2)  # a new training begins a new file
    assert len(read(path)) == 2


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_resumed_training_goes_on_with_its_file(tmp_path, name):
    go(LogFile(tmp_path / f"meant-{name}"))
    path = tmp_path / name
    with pytest.raises(Stopped):
        go(LogFile(path), stop_after(2), folder=tmp_path)
    assert len(read(path)) == 3  # the third round has no checkpoint, so it is trained again
    go(LogFile(path), folder=tmp_path, resume=True)
    assert exact(read(path)) == exact(read(tmp_path / f"meant-{name}"))


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_file_that_is_cut_off_goes_on_and_a_foreign_one_is_refused(tmp_path, name):
    meant, path = tmp_path / f"meant-{name}", tmp_path / name
    go(LogFile(meant))
    path.write_text("name,score\nnobody,3\n")
    with pytest.raises(Stopped):
        go(LogFile(path), stop_after(2), folder=tmp_path)  # a new training replaces it
    path.write_bytes(path.read_bytes()[:-30])
    go(LogFile(path), folder=tmp_path, resume=True)
    assert exact(read(path)) == exact(read(meant))
    for foreign in ("name,score\nnobody,3\n", "[3]\n", "\xff\n"):
        path.write_text(foreign, encoding="latin-1")
        if "," in foreign or name != "log.csv":
            with pytest.raises(ValueError, match=rf"LogFile\('.*{name}'\): not a log of this training"):
                go(LogFile(path), folder=tmp_path, resume=True, rounds=4)


def test_only_the_first_process_writes(tmp_path):
    go(LogFile(tmp_path / "log.csv"), TensorBoard(tmp_path / "board"), runtime=Second(), test=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"log\.txt.*\.csv or \.jsonl"):
        LogFile("log.txt")


def test_tensorboard_has_the_figures(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = go(TensorBoard(tmp_path))
    events = loader.EventAccumulator(str(tmp_path)).Reload()
    meant = [record.score.loss for record in result.history if record.score]
    assert [event.value for event in events.Scalars("loss/test")] == pytest.approx(meant)
    assert [event.step for event in events.Scalars("loss/train")] == [0, 1, 2, 3]


class FakeWandB(types.ModuleType):
    """``wandb.run``, ``wandb.init``, and ``log`` and ``finish`` of a run."""

    def __init__(self):
        super().__init__("wandb")
        self.run, self.logged, self.ended = None, [], []

    def init(self, **settings):
        self.settings, self.run = settings, self
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.run = None
        self.ended.append(exit_code)


class FakeMLflow(types.ModuleType):
    """``mlflow.active_run``, ``start_run``, ``log_metrics`` and ``end_run``."""

    def __init__(self):
        super().__init__("mlflow")
        self.run, self.logged, self.ended = None, [], []

    def active_run(self):
        return self.run

    def start_run(self, **settings):
        assert self.run is None
        self.settings, self.run = settings, self

    def log_metrics(self, values, step):
        self.logged.append((step, values))

    def end_run(self, status):
        self.run = None
        self.ended.append(status)


@pytest.mark.parametrize(
    ("fake", "make", "ends"), [(FakeWandB, WandB, [0, 1]), (FakeMLflow, MLflow, ["FINISHED", "FAILED"])]
)
def test_trackers_get_the_figures_and_the_end(monkeypatch, fake, make, ends):
    module = fake()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    result = go(make(name="mine"))
    assert module.settings == {"name": "mine"}
    for (step, values), record in zip(module.logged, result.history, strict=True):
        known = [value for value in figures(record, METRICS).values() if value is not None]
        assert (step, list(values.values())) == (record.round, known)
    if make is MLflow:
        assert "P_1_ top/test" in module.logged[-1][1]
    with pytest.raises(Stopped):
        go(make(), stop_after(1))
    assert module.ended == ends
    module.run = module  # the user's own run is used, and stays
    go(make())
    assert module.ended == ends
    monkeypatch.setitem(sys.modules, module.__name__, None)
    with pytest.raises(ValueError, match=rf"pip install 'skerry\[{module.__name__}\]'"):
        make()


@pytest.mark.filterwarnings("ignore")
def test_the_real_wandb_writes_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    go(WandB(project="skerry", mode="offline", dir=str(tmp_path)))
    assert wandb.run is None
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.filterwarnings("ignore")
def test_the_real_mlflow_writes_to_a_file_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    result = go(MLflow(run_name="mine"))
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss/train")
    assert [each.value for each in history] == pytest.approx([record.train_loss for record in result.history])


def test_progress_prints_a_line_per_evaluation_or_about_ten(capsys):
    go(Progress("mine"))
    with_test = capsys.readouterr().err.splitlines()
    assert [line.split()[:3] for line in with_test] == [["mine:", "round", "2/4"], ["mine:", "round", "4/4"]]
    assert "test accuracy" in with_test[0]
    go(Progress(), test=False, rounds=21)
    assert len(capsys.readouterr().err.splitlines()) == 11
    go(Progress(), runtime=Second(), test=False)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    go(Progress("mine"))
    assert "4/4" in capsys.readouterr().err
