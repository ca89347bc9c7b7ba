"""Whatever ends one process before it has trained a round ends all, with one line that says which process and why.

Processes start as torchrun starts them on two machines without a shared folder (``machines.py``).
"""

import os
import re
import shutil
import time

import pytest
import torch
from machines import run_on_machines
from torch import nn
from torch.nn import functional as F

import skerry
from skerry.training import Test

SETTINGS = ["--set", "local_steps=2", "--set", "threads=1", "--set", "checkpoint_every_s=0"]
TRAIN = ["train", "digits-mlp", "--out", "run", "--rounds", "2", *SETTINGS]


class Fails:
    """A training of which one process fails at a stage; ``wire``: how each process sends."""

    def __init__(self, stage="", rank=0, error=None, wire=("exact", "exact")):
        self.stage, self.rank, self.error, self.wire = stage, rank, error, wire

    def __call__(self, rank):
        def at(stage):
            if (stage, rank) == (self.stage, self.rank):
                raise self.error

        class Data(skerry.Shards):
            def batches(self, *which):
                at("first batch")
                return super().batches(*which)

            def sample(self, *which):
                at("sample")
                return super().sample(*which)

        def loss_fn(output, labels):
            at("loss")
            return F.cross_entropy(output, labels)

        def score(output, labels):
            at("evaluation")
            return labels.double()

        with skerry.Processes.join(wire=self.wire[rank]) as runtime:
            at("data")
            x, y = torch.linspace(-1, 1, 200).view(50, 4), torch.arange(50) % 2
            data = Data(x, y, skerry.split(y, 2, "iid", seed=0), batch_size=10, seed=0)
            at("model")
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            skerry.train(
                model, loss_fn, data, plan=skerry.discover(model, x), algorithm=skerry.ist(2, local_steps=2),
                optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1), num_rounds=2, runtime=runtime,
                callbacks=[skerry.callbacks.Callback(on_start=lambda session: at("start"))],
                test=Test(x, y, metrics={"mine": score}, every=1),
            )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of two machines after a run."""
    folder = tmp_path_factory.mktemp("trained")
    codes, said = run_on_machines(folder, TRAIN, TRAIN)
    assert codes == [0, 0], said
    return folder


def no_file(folder):
    shutil.rmtree(folder / "run" / "checkpoint")


def damaged(folder):
    for path in (folder / "run" / "checkpoint").glob("*/*"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))


def other_folder(folder):
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "letter.txt").touch()


def one_of_two(stages):
    """Each stage with the process that fails, which alternates; the other one takes as long again."""
    both = [(stage, rank, rank != k % 2) for k, stage in enumerate(stages) for rank in (0, 1)]
    return [pytest.param(stage, rank, marks=[pytest.mark.slow] if other else []) for stage, rank, other in both]


# What is done to the machine that fails and what it is told to do, what the other one does, and words of the error.
COMMANDS = {
    "option": (None, [*TRAIN, "--rounds", "many"], TRAIN, "many"),
    "setting": (None, [*TRAIN, "--set", "local_stepz=3"], TRAIN, "local_stepz"),
    "recipe": (None, ["train", "digits", "--out", "run"], TRAIN, "digits-mlp"),
    "data": (None, [*TRAIN, "--set", "data.samplez=3"], TRAIN, "samplez"),
    "no run to resume": (shutil.rmtree, ["train", "--out", "run", "--resume"], [*TRAIN, "--resume"], "RECIPE|no run"),
    "no checkpoint file": (no_file, [*TRAIN, "--resume"], [*TRAIN, "--resume"], "checkpoint"),
    "damaged checkpoint": (damaged, [*TRAIN, "--resume"], [*TRAIN, "--resume"], "checkpoint"),
}


@pytest.mark.parametrize(("stage", "failing"), one_of_two(COMMANDS))
def test_a_command_that_fails_on_one_machine(tmp_path, trained, stage, failing):
    before, own, others, words = COMMANDS[stage]
    folder = tmp_path / "machines"
    if before is None:
        folder.mkdir()
    else:
        shutil.copytree(trained, folder)
        before(folder / f"{failing}")
    check_told(run_on_machines(folder, *([own, others] if failing == 0 else [others, own])), failing, words)


def test_a_folder_that_holds_something_else(tmp_path):
    other_folder(tmp_path / "0")
    check_told(run_on_machines(tmp_path, TRAIN, TRAIN), 0, "letter.txt")


def test_a_run_on_another_machine_is_not_replaced(tmp_path, trained):
    shutil.copytree(trained / "1", tmp_path / "1")
    kept = {path: path.read_bytes() for path in (tmp_path / "1" / "run").rglob("*") if path.is_file()}
    assert any("round-" in str(path) for path in kept)
    check_told(run_on_machines(tmp_path, TRAIN, TRAIN), 1, "holds a run")
    assert {path: path.read_bytes() for path in (tmp_path / "1" / "run").rglob("*") if path.is_file()} == kept


STAGES = ["data", "model", "sample", "start", "first batch", "loss", "evaluation"]


@pytest.mark.parametrize(("stage", "failing"), one_of_two(STAGES))
def test_a_script_that_fails_on_one_machine(tmp_path, stage, failing):
    error = KeyError("wrong") if stage == "loss" else ValueError("this is wrong")
    work = Fails(stage, failing, error)
    words = {"loss": "KeyError.*wrong", "start": r"this is wrong\s\(callback Callback, on_start\)"}
    check_told(run_on_machines(tmp_path, work, work), failing, words.get(stage, "this is wrong"))


class OnInterface(Fails):
    """A training of which one process has been told to use a network that it does not have."""

    def __call__(self, rank):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if rank != self.rank else "nowhere"
        super().__call__(rank)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_network_that_is_not_there(tmp_path, failing):
    work = OnInterface(rank=failing)
    check_told(run_on_machines(tmp_path, work, work), failing, "cannot join.*GLOO_SOCKET_IFNAME")


def test_another_wire_is_named_on_both(tmp_path):
    work = Fails(wire=("exact", "bf16"))
    codes, said = run_on_machines(tmp_path, work, work)
    assert codes == [1, 1], said
    assert "wire is exact here and bf16 on rank 1" in said[0]
    assert "wire is bf16 here and exact on rank 0" in said[1]


def leaves_late(rank):
    """Leave the group after the process that serves the store has done so."""
    with skerry.Processes.join() as runtime:
        total = runtime.total

        def late(tensor):
            result = total(tensor)
            time.sleep(1.5 if rank == 1 else 0)  # heartbeats go on
            return result

        runtime.total = late


def test_a_process_that_leaves_late_has_not_failed(tmp_path):
    codes, said = run_on_machines(tmp_path, leaves_late, leaves_late)
    assert codes == [0, 0], said


def test_the_command_may_be_repeated_after_another_machine_failed(tmp_path):
    check_told(run_on_machines(tmp_path, TRAIN, [*TRAIN, "--set", "data.samplez=3"]), 1, "samplez")
    codes, said = run_on_machines(tmp_path, TRAIN, TRAIN)
    assert codes == [0, 0], said


def check_told(ended, failing, words):
    """Both end with an error; the other one in one line that names the rank and the cause."""
    codes, said = ended
    other = 1 - failing
    assert codes == [codes[0] or "no error", codes[1] or "no error"], said
    assert re.search(words, said[failing]), said
    lines = [line for line in said[other].splitlines() if "error" in line.lower()]
    assert len(lines) == 1, said[other]
    told = rf"skerry: error: (rank {other}\b.*\brank {failing} ended|rank {failing}): .*({words})"
    assert re.search(told, lines[0]), lines[0]
    for raw in ("Traceback", "EnforceNotMet", "Connection closed"):
        assert raw not in said[other]
