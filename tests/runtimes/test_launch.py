"""Worker processes: against the serial runtime (the meaning), and on every way a process can go."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from zoo import blobs, mlp

from skerry import Processes, Serial, cosine, ist, launch, local_sgd, narrow, train
from skerry.runtimes import WorkerDied

ALGORITHMS = {
    "ist": (ist(3, local_steps=3), "sgd"),
    "ist-uneven-core-travel": (
        ist(3, local_steps=3, capacities=(1, 2, 3), core=0.3, optimizer_state="travel"),
        "adamw",
    ),
    "local_sgd-travel": (local_sgd(3, local_steps=3, optimizer_state="travel"), "adamw"),
    "narrow": (narrow(3, local_steps=3), "sgd"),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
}


def work(runtime, folder, name):
    """Train in every process; the first one saves what all of them must have."""
    torch.set_num_threads(1)
    algorithm, optimizer = ALGORITHMS[name]
    torch.manual_seed(1)
    model, plan, _ = mlp(dropout=0.1)
    test = next(iter(blobs(1, samples=200, batch=200, seed=5).batches(0, 0, 1)))
    result = train(
        model, F.cross_entropy, blobs(3), plan=plan, algorithm=algorithm, optimizer=OPTIMIZERS[optimizer],
        num_rounds=4, schedule=cosine, test=test, runtime=runtime,
    )  # fmt: skip
    everything = {**result.state.tensors, "trained": result.state.trained}
    everything |= {f"calibrated.{n}": t for n, t in result.model.state_dict().items()}
    everything["score"] = torch.tensor([result.score.accuracy, result.score.loss], dtype=torch.float64)
    everything["due"] = torch.tensor(result.state.totals["bytes_due"])
    save_file(everything, folder / f"{name}-{runtime.rank}")


def all_algorithms(runtime, folder):
    for name in ALGORITHMS:
        work(runtime, folder, name)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What serial and processes make of every algorithm, started once."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "serial").mkdir()
    all_algorithms(Serial(), folder / "serial")
    launch(all_algorithms, 3, folder)
    return folder


@pytest.mark.parametrize("name", ALGORITHMS)
def test_processes_give_the_serial_result(results, name):
    serial = load_file(results / "serial" / f"{name}-0")
    processes = [load_file(results / f"{name}-{rank}") for rank in range(3)]
    _, plan, _ = mlp(dropout=0.1)
    one_holder = name == "ist"
    for tensor in serial:
        if tensor == "due":  # only the first process reckons it
            assert processes[0]["due"] == serial["due"]
            continue
        for other in processes:
            torch.testing.assert_close(other[tensor], serial[tensor])
        if one_holder and tensor in plan.dims:
            assert torch.equal(processes[0][tensor], serial[tensor]), tensor
        assert all(torch.equal(other[tensor], processes[0][tensor]) for other in processes), tensor


def die(runtime, folder, how):
    """Work for two rounds, then rank 1 goes."""
    for round in range(5):
        runtime.begin(round)
        runtime.total(torch.ones(1))
        if round == 2 and runtime.rank == 1:
            (folder / "gone").write_text(str(os.getpid()))
            if how == "raise":
                raise ValueError("rank 1 cannot read its data; mend it")
            if how == "bug":
                raise KeyError("unexpected")
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("kill", "rank 1, round 2: killed by SIGKILL"),
        ("raise", "rank 1, round 2: rank 1 cannot read its data; mend it"),
        ("bug", "rank 1, round 2: Traceback"),
        ("stop", "lost another process during evaluation"),
    ],
)
def test_a_death_ends_all_and_names_rank_round_and_cause(tmp_path, how, words):
    with pytest.raises(WorkerDied) as error:
        launch(die, 3, tmp_path, how, timeout_s=4.0)
    assert words in str(error.value)
    assert how == "bug" or "\n" not in str(error.value)
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("skerry-")]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "gone").read_text()), 0)


def wait_forever(runtime, folder):
    (folder / str(runtime.rank)).write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_worker_outlives_its_parent(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=launch, args=(wait_forever, 2, tmp_path))
    parent.start()
    while len(list(tmp_path.iterdir())) < 2 or not all(p.read_text() for p in tmp_path.iterdir()):
        time.sleep(0.05)
    pids = [int(p.read_text()) for p in tmp_path.iterdir()]
    assert all(_alive(pid) for pid in pids)
    parent.kill()
    parent.join()
    until = time.monotonic() + 20
    while any(_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def test_a_port_in_use_is_told_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {
            **os.environ, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }  # fmt: skip
        command = [sys.executable, "-m", "skerry", "train", "digits-mlp", "--workers", "2", "--out", "unused"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "port is in use" in done.stderr
    assert "Traceback" not in done.stderr


def one_too_few(runtime):
    assert isinstance(runtime, Processes)
    runtime.mine(3)


def test_workers_must_be_as_many_as_processes():
    with pytest.raises(WorkerDied, match="3 workers in 2 processes"):
        launch(one_too_few, 2)
