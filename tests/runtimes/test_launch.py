"""Worker processes: against the serial runtime, which defines the meaning; and every way in which one can end."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from unittest import mock

import pytest
import torch
from costs import by_size
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from zoo import METHODS, MODELS, fits

from skerry import Checkpoints, Processes, Shards, cosine, discover, ist, launch, relay, split, train
from skerry.algorithms import diloco, local_sgd
from skerry.callbacks import EarlyStopping
from skerry.checkpoint.load import load_latest
from skerry.model.tensors import named_tensors
from skerry.runtimes import Serial
from skerry.runtimes.distributed.launch import WorkerDied
from skerry.training import Test, constant, cost
from skerry.training.setup import net_to_train
from skerry.weights import FromInitializer


def work(runtime, folder, method, model_name):
    """Train in every process; each saves its figures, all together a checkpoint and the calibrated model."""
    torch.set_num_threads(1)
    algorithm, (build, data) = METHODS[method].algorithm, MODELS[model_name]
    torch.manual_seed(1)
    model, plan, _ = build()
    test = next(iter(data(1).batches(0, 0, 1)))
    out = folder / f"{method}-{model_name}"
    result = train(
        model, F.cross_entropy, data(algorithm.partition.num_workers), plan=plan, algorithm=algorithm,
        optimizer=METHODS[method].optimizer, num_rounds=3, schedule=cosine, test=Test(*test, batch_size=5),
        checkpoints=Checkpoints(folder=out, run="mine"), runtime=runtime, verify=False,
    )  # fmt: skip
    result.export(out, shard_bytes=800)
    figures = {
        "trained": result.state.trained,
        "score": torch.tensor([result.score.accuracy, result.score.loss, result.score.count], dtype=torch.float64),
        "due": torch.tensor([result.state.totals[key] for key in ("bytes_due", "flop")], dtype=torch.float64),
    }
    save_file(figures, out / f"figures-{runtime.rank}")


def work_through(runtime, folder, grid):
    with mock.patch.object(cost, "step_cost", by_size):
        for method, model in grid:
            work(runtime, folder, method, model)


# What differs between processes, each at least once: nets side by side, units that are unassigned, that several hold or
# all, parts of several sizes, state that travels, means that arrive late, an outer optimizer, and each kind of model.
ALWAYS = {
    "mlp": {"relay-travel", "ist-uneven-travel", "ist-core-overlap-travel", "diloco", "narrow", "fedrolex"},
    "cnn": {"ist"},
    "blocks": {"resist"},
}
GRID = [
    pytest.param(method, model, marks=() if method in ALWAYS[model] else pytest.mark.slow)
    for model in MODELS
    for method in METHODS
    if fits(method, model)
]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """The results of both runtimes for each method and model; processes are started once per number of workers."""
    folder, by_size = tmp_path_factory.mktemp("runs"), {}
    for item in request.session.items:
        if item.function is test_processes_give_the_serial_result:
            method, model = item.callspec.params["method"], item.callspec.params["model"]
            by_size.setdefault(METHODS[method].algorithm.partition.num_workers, []).append((method, model))
    for num_workers, grid in by_size.items():
        work_through(Serial(), folder / "serial", grid)
        launch(work_through, num_workers, folder / "processes", grid)
    return folder


def kept(folder, method, model_name):
    """Every full tensor of a checkpoint, read by one process."""
    torch.manual_seed(1)
    model, plan, _ = MODELS[model_name][0]()
    model, plan = net_to_train(model, plan, METHODS[method].algorithm, 0)
    folder, name = folder / f"{method}-{model_name}", METHODS[method].algorithm.name
    checkpoint = load_latest(folder, plan, named_tensors(model), Serial(), run="mine", method=name)
    return {name: checkpoint.read(name) for name in checkpoint.sizes}, checkpoint


def exported(folder):
    """The tensors of an exported model, and the names of its files."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}, [file.name for file in files]


ONE_HOLDER = ("ist", "ist-uneven-travel", "relay", "relay-travel", "narrow", "single", "ensemble")


@pytest.mark.parametrize(("method", "model"), GRID)
def test_processes_give_the_serial_result(results, method, model):
    num_workers = METHODS[method].algorithm.partition.num_workers
    ours, meant = (results / where for where in ("processes", "serial"))
    tensors, checkpoint = kept(ours, method, model)
    expected, of_serial = kept(meant, method, model)
    assert tensors.keys() == expected.keys()
    travels = METHODS[method].algorithm.optimizer_state == "travel"
    assert travels == any("::" in name for name in tensors)
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor)
        if method in ONE_HOLDER:
            assert torch.equal(tensors[name], tensor), name
    assert (checkpoint.state.round, checkpoint.state.bad_rounds) == (3, 0)
    assert torch.equal(checkpoint.state.trained, of_serial.state.trained)

    name = f"{method}-{model}"
    (calibrated, files), (expected, their_files) = exported(ours / name), exported(meant / name)
    assert files == their_files
    assert len(files) > 1 or method == "narrow"
    assert calibrated.keys() == expected.keys()
    for tensor in expected:
        torch.testing.assert_close(calibrated[tensor], expected[tensor])
        if method in ONE_HOLDER and not tensor.endswith(("running_mean", "running_var")):  # sums over all processes
            assert torch.equal(calibrated[tensor], expected[tensor]), tensor

    serial = load_file(meant / name / "figures-0")
    for rank in range(num_workers):
        figures = load_file(ours / name / f"figures-{rank}")
        assert torch.equal(figures["trained"], serial["trained"])
        torch.testing.assert_close(figures["score"], serial["score"], rtol=1e-6, atol=1e-6)
        assert figures["due"][1] == pytest.approx(float(serial["due"][1]))
        assert figures["due"][0] == load_file(ours / name / "figures-0")["due"][0]
    # Processes count the bytes due; the serial runtime predicts them, with collectors of equal parts.
    assert figures["due"][0] == pytest.approx(float(serial["due"][0]), rel=0.1)


def die(runtime, folder, how):
    """Work for two rounds, then rank 1 ends."""
    for round in range(5):
        runtime.at(round, "local steps")
        runtime.total(torch.ones(1))
        if round == 2 and runtime.rank == 1:
            (folder / "gone").write_text(str(os.getpid()))
            if how == "raise":
                raise ValueError("rank 1 cannot read its data; fix it")
            if how == "bug":
                raise KeyError("unexpected")
            if how == "long":
                raise ValueError("x" * 200_000)
            if how == "leave":
                raise SystemExit(0)
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("kill", r"rank 1\b.*round 2\b.*local steps\b.*\bSIGKILL\b"),
        ("raise", r"rank 1\b.*round 2\b.*local steps\b.*rank 1 cannot read its data; fix it"),  # as it was raised
        ("bug", r"rank 1\b.*round 2\b.*local steps\b.*\bTraceback\b"),
        ("long", r"rank 1\b.*round 2\b.*local steps\b.*xxx"),
        ("leave", r"rank 1\b.*round 2\b.*local steps\b.*\b0\b"),
        ("stop", r"rank 1\b.*--resume\b"),
    ],
)
def test_a_death_ends_all_and_names_rank_round_and_cause(tmp_path, how, names):
    with pytest.raises(WorkerDied, match=names) as error:
        launch(die, 3 if how in ("kill", "leave", "stop") else 2, tmp_path, how, timeout_s=4.0)
    assert how == "bug" or "\n" not in str(error.value)
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("skerry-")]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "gone").read_text()), 0)


def wait_forever(runtime, folder):
    (folder / str(runtime.rank)).write_text(str(os.getpid()))
    if runtime.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)  # even a stopped process must end
    while True:
        time.sleep(0.05)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_worker_outlives_its_parent(tmp_path):
    """Its workers are started here as they are for users; the other tests fork what they start."""
    parent = multiprocessing.get_context("forkserver").Process(target=launch, args=(wait_forever, 2, tmp_path))
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


@pytest.mark.slow
def test_a_port_in_use_is_reported_in_one_line():
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
    assert "--master-port" in done.stderr
    assert "Traceback" not in done.stderr


def two_too_few(runtime):
    assert isinstance(runtime, Processes)
    runtime.mine(3)


def test_starting_processes_twice_or_never_is_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"\bRANK\b.*\btorchrun\b"):
        Processes.join()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match=r"\btorchrun\b.*\bProcesses\.join\b"):
        launch(print, 2)


def other_loss(output, labels):
    return F.cross_entropy(output, labels)


def small_net(hidden=8, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2))


def small_training(runtime, **changed):
    """The arguments of a training of four steps, with some changed."""
    x, y = torch.linspace(-1, 1, 200).view(50, 4), torch.arange(50) % 2
    model = changed.pop("model", None) or small_net()
    plan = changed.get("plan") or discover(model, x)
    return {
        "model": model, "loss_fn": F.cross_entropy, "plan": plan, "algorithm": ist(2, local_steps=2),
        "data": Shards(x, y, split(y, 2, "iid", seed=0), batch_size=10, seed=0), "num_rounds": 2, "runtime": runtime,
        "optimizer": lambda net: torch.optim.SGD(net.parameters(), 0.1), "test": Test(x, y), **changed,
    }  # fmt: skip


def groups(lr):
    """An optimizer that decays matrices only."""

    def make(net):
        by_decay = {True: [], False: []}
        for name, p in net.named_parameters():
            by_decay[name.endswith("weight")].append(p)
        vectors, matrices = by_decay[False], by_decay[True]
        decayed = {"params": matrices, "weight_decay": 0.1, "lr": lr}
        return torch.optim.AdamW([{"params": vectors, "weight_decay": 0.0}, decayed], lr=0.1)

    return make


def differs(runtime, folder):
    """Train with one thing different in the second process, for each of many things."""
    r = runtime.rank
    x, y = torch.linspace(-1, 1, 200).view(50, 4), torch.arange(50) % 2
    parts = split(y, 2, "iid", seed=0)
    frozen = small_net()
    frozen[0].weight.requires_grad_(not r)

    def checkpoints(run="a", **more):
        return Checkpoints(folder=folder / str(r), run=run, **more)

    plan = discover(small_net(), x)
    # What differs, then the name of the setting, its value in rank 0 and in rank 1 in the message.
    table = [
        ({"algorithm": ist(2, local_steps=4 + r)}, "algorithm.local_steps", "4", "5"),
        ({"algorithm": (ist(2, local_steps=2), relay(2, local_steps=2))[r]}, "algorithm.name", "ist", "relay"),
        ({"algorithm": ist(2, core=0.1 * (1 + r))}, "algorithm.partition.core", "0.1", "0.2"),
        ({"algorithm": ist(2, seed=r)}, "algorithm.partition.seed", "0", "1"),
        ({"algorithm": ist(2, optimizer_state=("reset", "travel")[r])}, "algorithm.optimizer_state", "reset", "travel"),
        ({"algorithm": ist(2, overlap=r)}, "algorithm.overlap", "0", "1"),
        ({"algorithm": diloco(2, outer_lr=0.5 + r)}, "algorithm.outer.lr", "0.5", "1.5"),
        ({"num_rounds": 2 + r}, "num_rounds", "2", "3"),
        ({"seed": r}, "seed", "0", "1"),
        ({"max_bad_rounds": 1 + r}, "max_bad_rounds", "1", "2"),
        ({"optimizer": lambda net: torch.optim.SGD(net.parameters(), 0.1 * (1 + r))}, "optimizer.lr", "0.1", "0.2"),
        ({"optimizer": lambda net: torch.optim.SGD(net.parameters(), 0.1, r / 2)}, "optimizer.momentum", "0.0", "0.5"),
        (
            {"optimizer": lambda net: (torch.optim.SGD, torch.optim.Adam)[r](net.parameters(), 0.1)},
            "optimizer",
            "SGD",
            "Adam",
        ),
        ({"optimizer": groups(0.1 + r)}, "optimizer.1.lr", "0.1", "1.1"),
        ({"schedule": (constant, cosine)[r]}, "schedule", "1 1 1", "1 0.96"),
        ({"loss_fn": (F.cross_entropy, other_loss)[r]}, "loss_fn", "cross_entropy", "other_loss"),
        (
            {"loss_fn": torch.nn.CrossEntropyLoss(label_smoothing=r / 2)},
            "loss_fn.label_smoothing",
            "0.0",
            "0.5",
        ),
        ({"checkpoints": checkpoints(resume=bool(r))}, "checkpoints.resume", "False", "True"),
        ({"checkpoints": checkpoints(run="ab"[r])}, "checkpoints.run", "a", "b"),
        ({"checkpoints": (None, checkpoints())[r]}, "checkpoints", "None", "not given"),
        ({"model": small_net(8 + r)}, "axes.0", "8", "9"),
        (
            {"model": small_net(8).to((torch.float32, torch.float64)[r]), "plan": plan},
            "model.0.weight",
            "float32",
            "float64",
        ),
        ({"model": frozen, "plan": plan}, "model.0.weight", r"float32 \(8, 4\)", r"float32 \(8, 4\), frozen"),
        ({"model": small_net(seed=r)}, "0.weight", "-?0.", "-?0."),
        ({"start": lambda m: FromInitializer(m, seed=r)}, "0.weight", "-?0.", "-?0."),
        ({"plan": (plan, plan.without("0"))[r], "algorithm": local_sgd(2)}, "axes.0", "8", "not given"),
        ({"data": Shards(x, y, parts, batch_size=10 + r, seed=0)}, "data.batch_size", "10", "11"),
        (
            {"callbacks": [EarlyStopping(3 + r, of="train_loss")]},
            "callbacks",
            ".*EarlyStopping.*3",
            ".*EarlyStopping.*4",
        ),
        ({"calibration_samples": 20 + r}, "calibration_samples", "20", "21"),
        ({"logit_adjustment": (None, torch.zeros(2, 2))[r]}, "logit_adjustment", "None", "2 classes"),
        ({"test": Test(x, (y + r) % 2)}, "test.labels", "checksum .*", "checksum .*"),
        (
            {"test": Test(x[: 40 + r], y[: 40 + r])},
            "test.inputs",
            r"torch.float32 \(40, 4\)",
            r"torch.float32 \(41, 4\)",
        ),
        ({"test": (Test(x, y), None)[r]}, "test", "held_by='all'", "no test set"),
        ({"test": (Test(x, y), Test(x, y, held_by="parts"))[r]}, "test", "held_by='all'", "held_by='parts'"),
        ({"test": (None, Test(x, y, held_by="parts"))[r]}, "test", "no test set", "held_by='parts'"),
        ({"test": Test(x, y, held_by="one")}, "test", "held_by='one'", "held_by='one'"),
        ({"test": Test(x, y, every=r)}, "test.every", "0", "1"),
        ({"test": Test(x, y, batch_size=10 + r, held_by="parts")}, "test.batch_size", "10", "11"),
        ({"test": Test(x, y, metrics={"a": len} if r else None)}, "test.metrics", "", "a"),
    ]
    missed = []
    for changed, name, *values in table:
        here, there = (values[rank] for rank in (r, 1 - r))
        try:
            train(**small_training(runtime, **changed))
            missed.append(f"{name}: trained")
        except ValueError as error:
            if "\n" in str(error) or not re.search(
                rf"rank {r}\b.*\b{name}\b.*{here}.*{there}.*rank {1 - r}", str(error)
            ):
                missed.append(f"{name}: {error}")
    assert not missed, "\n".join(missed)
    (folder / f"done{r}").touch()


def test_processes_that_differ_end_before_they_train(tmp_path):
    launch(differs, 2, tmp_path)
    assert len(list(tmp_path.glob("done*"))) == 2


def top2(output, labels):
    return (output.topk(2).indices == labels[:, None]).any(-1).double()


def scores_by(runtime, folder):
    """Score with the test set in all processes, in parts and in one; each in the same training."""
    x, y = torch.randn(50, 4, generator=torch.Generator().manual_seed(3)), torch.arange(50) % 2
    own = slice(0, 37) if runtime.rank == 0 else slice(37, 50)
    everywhere = Test(x, y, batch_size=8, every=1, metrics={"top 2": top2})
    first, second = (replace(everywhere, held_by="one") if runtime.rank == rank else None for rank in (0, 1))
    parts = replace(everywhere, inputs=x[own], labels=y[own], held_by="parts")
    records = {}
    for how, test in {"all": everywhere, "parts": parts, "first": first, "second": second}.items():
        result = train(**small_training(runtime, test=test))
        records[how] = [record.score for record in result.history]
        assert result.score == records[how][-1]
    if runtime.rank == 0:  # the serial runtime defines the meaning
        records["serial"] = [train(**small_training(None, test=replace(everywhere, every=0))).score]
        assert records["first"][-1:] == records["serial"]
    assert records["first"] == records["second"]
    for how in ("parts", "first"):
        for score, expected in zip(records[how], records["all"], strict=True):
            assert (score.count, score.accuracy, score.metrics) == (50, expected.accuracy, expected.metrics)
            assert score.loss == pytest.approx(expected.loss, rel=1e-6)
    (folder / str(runtime.rank)).write_text(f"{records['first']}")


def test_a_test_set_may_be_on_all_processes_on_one_or_in_parts(tmp_path):
    launch(scores_by, 2, tmp_path)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def test_there_must_be_one_process_per_worker():
    with pytest.raises(WorkerDied, match=r"(?=.*\b3\b).*\b1\b"):
        launch(two_too_few, 1)
