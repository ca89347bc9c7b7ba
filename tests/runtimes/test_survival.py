"""Killed runs: a resumed run ends with the bits of an undisturbed one; no hang, no orphan process."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from machines import start_on_machines
from safetensors.torch import load_file
from stopped_runs import latest, rounds

from skerry.experiments.cli import call
from skerry.experiments.reports import pictures

SETTINGS = ["--set", "rounds=12", "--set", "local_steps=15", "--set", "threads=1", "--set", "optimizer_state=travel"]
SETTINGS += ["--workers", "3"]
OFTEN = ["--set", "checkpoint_every_s=0"]


def _start(out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "skerry", "train", "digits-mlp", "--out", str(out), *more]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # ctrl-c goes to all of a session


def _fork(out: Path, *more: str) -> ForkServerProcess:
    """As ``_start``, but forked, and so are its workers: starting Python takes most of the time of a short run."""
    (process,) = start_on_machines(out.parent, ["train", "digits-mlp", "--out", str(out), *more], environments=[{}])
    return process


def _wait(process: "subprocess.Popen[str] | ForkServerProcess", out: Path) -> "tuple[int | None, str]":
    """Return its exit code and what it said."""
    if isinstance(process, ForkServerProcess):
        process.join(60)
        return process.exitcode, (out.parent / "0" / "said").read_text()
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def _wait_for_rounds(out: Path, number: int, process: "subprocess.Popen[str] | ForkServerProcess") -> None:
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < number:
        if isinstance(process, ForkServerProcess):
            assert process.is_alive()
        else:
            assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def _kill(process: "subprocess.Popen[str]", out: Path) -> None:
    process.kill()
    process.communicate(timeout=30)
    until = time.monotonic() + 10
    while _is_locked(out) and time.monotonic() < until:  # its workers notice it and end
        time.sleep(0.01)
    assert not _is_locked(out)


def _bits(out: Path) -> dict[str, torch.Tensor]:
    bits = {f"calibrated.{n}": t for n, t in load_file(out / "model.safetensors").items()}
    for path in latest(out).glob("*.safetensors"):
        bits |= {f"{path.name} {n}": t for n, t in load_file(path).items()}
    return bits


def _same_run(a: Path, b: Path) -> None:
    one, other = _bits(a), _bits(b)
    assert one.keys() == other.keys()
    assert not [n for n in one if not torch.equal(one[n], other[n])]
    kept = ("round", "train_loss", "loss", "accuracy", "bytes_due", "units_covered")
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (a, b)]
    figures = [[{key: line[key] for key in kept} for line in each] for each in lines]
    assert figures[0] == figures[1]
    assert not list(b.glob(".*"))


@pytest.fixture(scope="module", autouse=True)
def _bare_pictures():
    """Without pictures, which would take most of the time; ``test_report.py`` tests them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "_svg", lambda figure, salt: "<svg></svg>")
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    for runtime in ("serial", "processes"):
        out = folder / runtime
        assert call(["train", "digits-mlp", "--out", str(out), "--runtime", runtime, *SETTINGS]) == (0, "")
    return folder


@pytest.mark.parametrize(
    ("runtime", "kills"), [pytest.param(runtime, (5,), marks=pytest.mark.slow) for runtime in ("serial", "processes")]
)
def test_killed_in_the_middle_of_a_round_and_resumed(undisturbed, tmp_path, runtime, kills):
    out, moment = tmp_path / "x", random.Random(runtime)
    process = _start(out, "--runtime", runtime, *SETTINGS, *OFTEN)
    for number in kills:
        _wait_for_rounds(out, number, process)
        time.sleep(moment.uniform(0, 0.03))
        _kill(process, out)
        process = _start(out, "--resume")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    _same_run(undisturbed / runtime, out)


@pytest.mark.slow
def test_killed_before_its_first_checkpoint(undisturbed, tmp_path):
    out = tmp_path / "x"
    process = _start(out, *SETTINGS, "--set", "checkpoint_every_s=1000")
    _wait_for_rounds(out, 5, process)
    _kill(process, out)
    assert not rounds(out)
    assert call(["train", "digits-mlp", "--out", str(out), "--resume"]) == (0, "")
    _same_run(undisturbed / "serial", out)


@pytest.mark.parametrize("gone", [["summary.json"], ["summary.json", "model.safetensors", "units.json"]])
def test_killed_between_two_files(undisturbed, tmp_path, gone):
    """What a kill at the end can leave: missing files, a half line, drafts."""
    out = tmp_path / "x"
    shutil.copytree(undisturbed / "serial", out)
    for name in gone:
        (out / name).unlink()
    (out / ".model.safetensors.draft").write_bytes(b"half")
    with (out / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"round": 12, "time_s"')
    assert call(["train", "digits-mlp", "--out", str(out), "--resume"]) == (0, "")
    _same_run(undisturbed / "serial", out)
    assert {p.name for p in out.iterdir()} == {p.name for p in (undisturbed / "serial").iterdir()}
    assert (out / "units.json").read_bytes() == (undisturbed / "serial" / "units.json").read_bytes()


def test_killed_while_it_wrote_its_very_first_file(tmp_path):
    out = tmp_path / "x"
    out.mkdir()
    (out / "lock").touch()
    (out / ".config.json.draft").write_bytes(b"{")
    assert call(["train", "digits-mlp", "--out", str(out), "--set", "rounds=2", "--set", "local_steps=2"]) == (0, "")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run in processes of which one was killed, and its output."""
    out = tmp_path_factory.mktemp("interrupted") / "x"
    process = _fork(out, "--runtime", "processes", *SETTINGS, *OFTEN)
    _wait_for_rounds(out, 4, process)
    workers = _children(process.pid)
    os.kill(workers[-1], signal.SIGKILL)
    started = time.monotonic()
    code, told = _wait(process, out)
    assert code == 1
    assert time.monotonic() - started < 15
    assert not [pid for pid in workers if _is_running(pid)]
    return out, told


def test_a_worker_that_dies_ends_the_run_which_then_resumes(undisturbed, interrupted, tmp_path):
    broken, told = interrupted
    last = told.strip().splitlines()[-1]
    assert "rank " in last
    assert "round " in last
    assert "SIGKILL" in last
    assert "Traceback" not in told
    out = shutil.copytree(broken, tmp_path / "x")
    assert call(["train", "digits-mlp", "--out", str(out), "--resume"]) == (0, "")
    _same_run(undisturbed / "processes", out)


def test_a_run_may_change_its_runtime_on_resume(undisturbed, interrupted, tmp_path):
    out = shutil.copytree(interrupted[0], tmp_path / "x")
    assert call(["train", "digits-mlp", "--out", str(out), "--resume", "--runtime", "serial"]) == (0, "")
    serial, other = _bits(undisturbed / "serial"), _bits(out)
    assert serial.keys() == other.keys()
    for name, tensor in serial.items():
        torch.testing.assert_close(other[name], tensor)


@pytest.mark.slow
def test_plain_torchrun_gives_the_same_bits(undisturbed, tmp_path):
    out = tmp_path / "x"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "skerry"]
    command += ["train", "digits-mlp", "--out", str(out), *SETTINGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    _same_run(undisturbed / "processes", out)
    assert (out / "report.html").exists()


def _on_machines(folder: Path, *given: "list[str]") -> list[ForkServerProcess]:
    """Start a process on machine A and two on B, which share no folder."""
    out = [
        ["train", "digits-mlp", "--out", str(folder / machine), *more]
        for machine, more in zip("ABB", given, strict=True)
    ]
    local = [{"LOCAL_RANK": number} for number in "001"]
    return start_on_machines(folder, *out, more=local)


@pytest.mark.slow
def test_machines_that_share_no_folder_resume(undisturbed, tmp_path):
    settings = [*SETTINGS, *OFTEN]
    machines = _on_machines(tmp_path, settings, settings, settings)
    _wait_for_rounds(tmp_path / "A", 4, machines[0])
    machines[1].kill()
    for machine in machines:
        machine.join(30)
    machines = _on_machines(tmp_path, ["--resume"], ["--resume"], settings)
    for machine in machines:
        machine.join(60)
    assert all(machine.exitcode for machine in machines)
    assert any("setting" in (tmp_path / f"{rank}" / "said").read_text() for rank in range(3))
    machines = _on_machines(tmp_path, ["--resume"], ["--resume"], ["--resume"])
    for machine in machines:
        machine.join(60)
    assert not any(machine.exitcode for machine in machines), [path.read_text() for path in tmp_path.glob("*/said")]
    ours, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "A", undisturbed / "processes"))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("runtime", "number", "code", "what"),
    [
        ("serial", signal.SIGTERM, 143, "terminated"),
        pytest.param("processes", signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_says_the_round_that_resume_starts_from(tmp_path, runtime, number, code, what):
    out = tmp_path / "x"
    start, kill = (_fork, os.kill) if runtime == "serial" else (_start, os.killpg)
    process = start(out, "--runtime", runtime, *SETTINGS, *OFTEN)
    _wait_for_rounds(out, 3, process)
    kill(process.pid, number)
    ended, told = _wait(process, out)
    assert ended == code, told
    last = told.strip().splitlines()[-1]
    assert last == f"skerry: {what} (--resume continues {out} after round {rounds(out)[-1]} of 12)"
    assert "Traceback" not in told


def _start_importing(out: Path) -> "tuple[subprocess.Popen[str], list[int]]":
    """A run whose three workers are still importing, and the workers."""
    process = _start(out, "--runtime", "processes", *SETTINGS)
    until = time.monotonic() + 60
    while True:
        workers = [pid for pid in _children(process.pid) if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
        if len(workers) == 3:
            return process, workers
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_while_processes_start_promises_nothing(tmp_path):
    out = tmp_path / "x"
    process, _ = _start_importing(out)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.strip().splitlines()[-1] == f"skerry: interrupted (nothing of {out} is kept, start it again)"
    assert not out.exists()


@pytest.mark.slow
def test_workers_leave_ctrl_c_to_the_process_that_started_them(tmp_path):
    """Also while they import, where it would end each with a traceback."""
    process, workers = _start_importing(tmp_path / "x")
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds 600 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting needs root rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["serial", "processes"])
def test_a_full_disk_in_the_middle_of_a_run_costs_nothing_that_was_saved(undisturbed, small_disk, runtime):
    out = small_disk / "x"
    process = _start(out, "--runtime", runtime, *SETTINGS, *OFTEN)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    last = told.strip().splitlines()[-1]
    found = re.search(rf"{out}/checkpoint/\S+: not written: .*{out}/checkpoint.*full.*after round (\d+) is kept", last)
    assert found, told
    assert f"--resume continues {out} after round {found[1]} of 12" in last
    assert rounds(out)[-1] == int(found[1])
    assert len(rounds(out)) == len(list((out / "checkpoint").iterdir()))  # no set is half-written
    assert not list(out.rglob(".*"))
    assert (out / "metrics.jsonl").read_bytes().endswith(b"}\n")
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    assert call(["train", "--out", str(out), "--resume"]) == (0, "")
    _same_run(undisturbed / runtime, out)


def _is_locked(out: Path) -> bool:
    import fcntl

    with (out / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _children(pid: int) -> list[int]:
    """The worker processes of ``pid``, without multiprocessing's resource tracker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid and "resource_tracker" not in command:
                found.append(int(entry.name))
    return sorted(found)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
