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
from zoo import METHODS, MODELS

from skerry import Processes, Serial, cosine, launch, train
from skerry.optimizer_state import parameter_of
from skerry.runtimes import WorkerDied


def work(runtime, folder, method, model_name):
    """Train in every process; each saves what all of them must have."""
    torch.set_num_threads(1)
    algorithm, (build, data) = METHODS[method].algorithm, MODELS[model_name]
    torch.manual_seed(1)
    model, plan, _ = build()
    test = next(iter(data(1).batches(0, 0, 1)))
    result = train(
        model, F.cross_entropy, data(algorithm.partition.num_workers), plan=plan, algorithm=algorithm,
        optimizer=METHODS[method].optimizer, num_rounds=3, schedule=cosine, test=test, runtime=runtime,
    )  # fmt: skip
    everything = {**result.state.tensors, "trained": result.state.trained}
    everything |= {f"calibrated.{n}": t for n, t in result.model.state_dict().items()}
    everything["score"] = torch.tensor([result.score.accuracy, result.score.loss], dtype=torch.float64)
    everything["due"] = torch.tensor(result.state.totals["bytes_due"])
    save_file(everything, folder / f"{method}-{model_name}-{runtime.rank}")


def whole_suite(runtime, folder):
    for method in METHODS:
        for model in MODELS:
            if METHODS[method].algorithm.partition.num_workers == runtime.num_processes:
                work(runtime, folder, method, model)


def only_single(runtime, folder):
    for model in MODELS:
        work(runtime, folder, "single", model)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What serial and processes make of every algorithm and model; processes are started twice in all."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "serial").mkdir()
    for method in METHODS:
        for model in MODELS:
            work(Serial(), folder / "serial", method, model)
    launch(whole_suite, 3, folder)
    launch(only_single, 1, folder)
    return folder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_processes_give_the_serial_result(results, method, model):
    num_workers = METHODS[method].algorithm.partition.num_workers
    serial = load_file(results / "serial" / f"{method}-{model}-0")
    processes = [load_file(results / f"{method}-{model}-{rank}") for rank in range(num_workers)]
    _, plan, _ = MODELS[model][0]()
    one_holder = method in ("ist", "ist-uneven-travel", "single")
    for tensor in serial:
        if tensor == "due":  # only the first process reckons it
            assert processes[0]["due"] == serial["due"]
            continue
        for other in processes:
            torch.testing.assert_close(other[tensor], serial[tensor])
        if one_holder and parameter_of(tensor) in plan.dims:
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
            if how == "long":
                raise ValueError("x" * 200_000)
            if how == "leave":
                raise SystemExit(0)
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("kill", "rank 1, round 2: killed by SIGKILL"),
        ("raise", "rank 1, round 2: rank 1 cannot read its data; mend it"),
        ("bug", "rank 1, round 2: Traceback"),
        ("long", "rank 1, round 2: xxx"),
        ("leave", "rank 1, round 2: ended before its work was done (exit code 0)"),
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
    if runtime.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)  # even a stopped one must go
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
    time.sleep(0.2)
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
