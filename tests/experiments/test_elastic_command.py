"""``skerry train --elastic`` in real processes: its files, checked against what each round must have left in them."""

import json
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from machines import start_on_machines

from skerry import runtimes
from skerry.experiments.cli import call, entry
from skerry.experiments.cli import elastic as command
from skerry.experiments.config import Config
from skerry.experiments.reports import pictures
from skerry.experiments.runs.folder import keep_config, saved_config
from skerry.runtimes.elastic import Elastic
from skerry.training.worker import Worker

ROUNDS = 9
SETTINGS = ["--rounds", f"{ROUNDS}", "--set", "local_steps=2", "--set", "threads=1", "--set", "timeout_s=3"]
SETTINGS += ["--set", "checkpoint_every_s=1000", "--set", "eval_every=4", "--patience", "2"]


def _words(out, port, members, *more):
    return ["train", "digits-mlp", "--elastic", members, "--store", f"127.0.0.1:{port}", "--out", str(out), *more]


def _member(out, port, method, dies, rank):
    """Take part; the process of worker 0, which writes the folder, dies in the middle of some rounds."""
    for name in ("RANK", "WORLD_SIZE"):  # of torchrun
        del os.environ[name]
    finish = Worker.finish

    def finish_or_die(worker):
        if worker.number == 0 and worker.round in dies:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(worker)

    Worker.finish = finish_or_die
    Path("ready").touch()
    while not all(Path(f"../{k}/ready").exists() for k in range(3)):
        time.sleep(0.02)
    sys.argv = ["skerry", *_words(out, port, "2:2", "--method", method, *SETTINGS)]
    entry()


@pytest.mark.slow  # tests/runtimes/test_elastic.py has the same without the command line
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["ist", "relay", "narrow"])
def test_a_run_goes_on_without_its_first_process_and_ends_with_a_checkpoint(tmp_path, capsys, monkeypatch, method):
    monkeypatch.setattr(pictures, "_svg", lambda figure, salt: "<svg></svg>")  # drawing takes seconds
    num_units = {"ist": 256, "relay": 2, "narrow": 0}[method]
    store, out = runtimes.serve_store(0), tmp_path / "run"
    machines = start_on_machines(tmp_path, *[partial(_member, out, store.port, method, (2, 5))] * 3)
    for machine in machines:
        machine.join(120)
    codes = [machine.exitcode for machine in machines]
    for machine in machines:
        machine.kill()
    said = [(tmp_path / f"{k}" / "said").read_text() for k in range(3)]
    assert sorted(codes) == [-signal.SIGKILL, -signal.SIGKILL, 1], said
    last = said[codes.index(1)].splitlines()[-1]
    assert "1 process, expected at least 2" in last
    assert f"--resume continues {out} after round 6 of {ROUNDS}" in last
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [*range(6)]
    first, second = lines[2], lines[5]
    assert [len(first["change"][n]) for n in ("members", "joined", "lost")] == [2, 1, 1]
    assert [len(second["change"][n]) for n in ("members", "joined", "lost")] == [1, 0, 1]
    for line in (first, second):
        assert line["refused"] == []
        assert line["change"]["units_lost"] == num_units // 2
        assert line["train_loss"] is not None
    assert call(["status", str(out)]) == (0, "")
    told = capsys.readouterr().out
    assert "not running here, round 6 of 9" in told
    assert f"processes: 1 joined, 2 lost; {num_units} times a unit lost its round" in told
    assert call([*_words(out, store.port, "1:2", *SETTINGS), "--resume"]) == (0, "")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [*range(ROUNDS)]
    assert [line["workers"] for line in lines] == [2] * 5 + [1] * 4
    trained = sum(sum(axis["counts"]) for axis in json.loads((out / "units.json").read_text())["axes"])
    resting = 3 if method == "relay" else 0  # one of two nets, when there is one process
    assert trained == num_units * (ROUNDS - 1) - resting  # half of them were lost, twice
    assert len(json.loads((out / "summary.json").read_text())["changes"]) == 2
    assert "Processes that came and went" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "digits-mlp", "--elastic", "3:2", "--store", "h:1"], "--elastic 3:2: expected MIN:MAX"),
        (["train", "digits-mlp", "--elastic", "2:3"], "needs --store HOST:PORT"),
        (["train", "digits-mlp", "--store", "h:1"], "--store: only with --elastic"),
        (["train", "digits-mlp", "--elastic", "2:3", "--store", "h:1", "--workers", "3"], "--workers: the processes"),
        (
            ["train", "fashion-mlp", "--elastic", "2:3", "--store", "h:1", "--method", "ddp"],
            "'ddp' cannot run",
        ),
        (["train", "digits-mlp", "--elastic", "2:3", "--store", "h:1", "--set", "wire=bf16"], "wire=bf16"),
        (
            [
                "train",
                "digits-mlp",
                "--elastic",
                "2:4",
                "--store",
                "h:1",
                "--method",
                "relay",
                "--set",
                "partition.max_exposure=.5",
            ],
            "--elastic: partition.max_exposure needs a fixed number of workers; leave it out",
        ),
        (["store", "29400"], "29400: expected HOST:PORT"),
        (["store", "10.0.0.1:99999"], "99999: expected HOST:PORT"),
        (["store", "nosuchhost.invalid:29400"], "nosuchhost.invalid: not an address of this machine; give one that"),
        (["store", "192.0.2.1:29400"], "192.0.2.1: not an address of this machine; give one that 'hostname -I' lists"),
        (["status", "nowhere"], "nowhere: no run there (config.json is missing); give the folder of a run"),
        (["train", "digits-mlp", "--patience", "2"], "--patience: only with --elastic MIN:MAX"),
        (["train", "digits-mlp", "--late", "2"], "--late: only with --elastic MIN:MAX"),
        (["train", "digits-mlp", "--by-speed"], "--by-speed: only with --elastic MIN:MAX"),
        (
            ["train", "digits-mlp", "--elastic", "1:2", "--store", "h:1", "--method", "relay", "--by-speed"],
            "--by-speed: method 'relay' deals equal shares, expected one of ist",
        ),
        (["train", "digits-mlp", "--elastic", "1:2", "--store", "h"], "--store h: expected HOST:PORT"),
        (
            ["train", "digits-mlp", "--elastic", "1:2", "--store", "h:1", "--patience", "-3"],
            "--patience -3: expected a positive number",
        ),
    ],
)
def test_each_mistake_is_one_line(words, named, tmp_path):
    code, told = call([*words, *(["--out", str(tmp_path / "x")] if words[0] == "train" else [])])
    assert code
    assert named in told
    assert "\n" not in told
    assert not (tmp_path / "x").exists()


def test_a_process_that_waits_says_for_whom(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "Elastic", partial(Elastic, grace_s=0.1))
    store = runtimes.serve_store(0)
    code, told = call(_words(tmp_path / "x", store.port, "2:2", "--patience", "0.1"))
    assert code == 1
    assert "cannot go on: 1 process, expected at least 2" in told
    said = capsys.readouterr().err
    assert "1 of 2 processes is here; all must give the same name, 'x', and the same store, 127.0.0.1:" in said


def test_the_closing_line_of_a_process_that_did_not_write_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "work", lambda *args, **more: None)
    monkeypatch.setattr(command.Elastic, "run", lambda self, training: training(Mock(rank=1, num_processes=2)))
    assert call(_words(tmp_path / "ea", 1, "2:2", "--rounds", "6")) == (0, "")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "the run 'ea' is finished after round 6; its folder was written by another process"


def test_the_status_of_a_run_that_is_written_elsewhere(tmp_path, capsys):
    keep_config(tmp_path / "ea", Config(recipe="digits-mlp", method="ist"))
    assert call(["status", str(tmp_path / "ea")]) == (0, "")
    assert capsys.readouterr().out == "digits-mlp ist: another process writes this run; ask for its status there\n"


def test_without_a_store_one_line_says_how_to_start_one(tmp_path, capfd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        code, told = call(_words(tmp_path / "x", port, "2:2", "--patience", "0.1"))
    assert code == 1
    remedy = f"start one there: skerry store 127.0.0.1:{port}"
    assert f"cannot go on: the store does not answer; {remedy} (nothing of" in told
    said = capfd.readouterr().err.splitlines()  # with what C++ writes
    assert said[1:] == [f"no store at 127.0.0.1:{port} yet; {remedy}; trying for 0.1 s"]


def test_a_store_on_a_port_in_use_is_one_line(capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, told = call(["store", f"127.0.0.1:{port}"])
    assert (code, told) == (1, f"error: port {port} is in use; choose another")
    assert capfd.readouterr().err == ""  # C++ has written nothing


def test_too_little_memory_is_told_before_it_joins(tmp_path, capsys, monkeypatch):
    """A share of one of two processes needs 4 MB, the whole 8 MB."""
    monkeypatch.setattr(command, "work", lambda *args, **more: None)
    monkeypatch.setattr(command.Elastic, "run", lambda self, training: training(Mock(rank=1, num_processes=2)))
    peak = lambda about, config, *, elastic: Mock(memory=Mock(peak=8e6 / config.workers))  # noqa: E731
    monkeypatch.setattr(command.planner, "forecast", peak)
    monkeypatch.setattr(command, "free_memory", lambda: 3e6)
    code, told = call(_words(tmp_path / "x", 1, "1:2"))
    assert code
    assert "--elastic: with 2 process(es) a share needs 4 MB, 3 MB are free here; give a greater maximum" in told
    monkeypatch.setattr(command, "free_memory", lambda: 5e6)
    assert call(_words(tmp_path / "x", 1, "1:2")) == (0, "")
    assert "with 1 process(es) a share needs 8 MB, 5 MB are free here: this process may end" in capsys.readouterr().err


def test_the_memory_of_the_machine_does_not_count_on_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(command.planner, "forecast", lambda *args, **more: Mock(memory=Mock(peak=8e6)))
    monkeypatch.setattr(command, "free_memory", lambda: 3e6)
    members, config = command.Members.of_options("1:2", "h:1", 1.0, None), Config(recipe="digits-mlp")
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(command, "chosen_device", lambda asked, device=device: Mock(type=device))
        if device == "cpu":
            with pytest.raises(ValueError, match="8 MB, 3 MB are free here"):
                command.check_memory(config, members)
        else:
            command.check_memory(config, members)
    assert capsys.readouterr().err == ""


def test_late_is_told_to_have_no_effect_with_two_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "work", lambda *args, **more: None)
    monkeypatch.setattr(command.Elastic, "run", lambda self, training: training(Mock(rank=1, num_processes=2)))
    for members in ("1:2", "1:3"):
        assert call(_words(tmp_path / "x", 1, members, "--late", "2")) == (0, "")
        told = "--late has no effect: it needs 3 or more processes" in capsys.readouterr().err
        assert told == (members == "1:2")


def test_faster_processes_get_wider_subnets(tmp_path, capsys, monkeypatch):
    """Two processes of speeds that are made up; a resume without asks for it."""
    asked, worked = [], []
    monkeypatch.setattr(command, "work", lambda runtime, config, out, *more, **settings: keep_config(out, config))
    monkeypatch.setattr(command, "is_written", lambda out: False)
    generation = Mock(rank=1, num_processes=2, capacities=(1.5, 0.5))

    def run(self, training):
        asked.append(self._by_speed)
        training(generation)
        worked.append(saved_config(tmp_path / "x").partition.capacities)

    monkeypatch.setattr(command.Elastic, "run", run)
    words = _words(tmp_path / "x", 1, "1:2", "--method", "ist")
    assert call([*words, "--by-speed"]) == (0, "")
    assert call([*words, "--by-speed", "--resume"]) == (0, "")
    assert asked == [True, True]
    assert worked == [(1.5, 0.5)] * 2
    code, told = call([*words, "--resume"])
    assert code
    assert "partition.capacities has a value per worker" in told
    assert "give --by-speed" in told


def test_free_memory_is_some_of_that_of_the_machine():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < command.free_memory() <= pages
