"""Two machines: hosts with their own network, and folders of their own, as docs/machines.md tells their users."""

import os
import re
import shlex
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from machines import run_on_machines, start_on_machines
from safetensors.torch import load_file
from torch.distributed.run import main as torchrun

from skerry.experiments.cli import call

DOCS = Path(__file__).parents[2] / "docs" / "machines.md"
SETTINGS = ["--rounds", "16", "--set", "local_steps=10", "--set", "threads=1", "--set", "checkpoint_every_s=0"]


@pytest.fixture(scope="module")
def hosts(load_script):
    """Two hosts; ``start(folder, *work)`` starts the work of each."""
    bench = load_script("distributed/hosts.py")
    if problem := bench.why_not():
        pytest.skip(f"no hosts here: {problem}")
    with bench.Hosts(2) as made:
        own = {"namespaces": [bench.NAMESPACES / name for name in made.names], "address": made.addresses[0]}
        made.start = partial(start_on_machines, **own)
        made.run_both = partial(run_on_machines, **own)
        made.kill = partial(bench.kill, made.names)
        yield made


@dataclass(frozen=True)
class Torchrun:
    """The commands for machines A and B in the documentation, with ``more`` arguments."""

    address: str
    more: list[str]

    def __call__(self, rank):
        (block,) = re.findall(r"^```sh\n(torchrun --nnodes 2.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
        commands = [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]
        assert len(commands) == 2
        assert "GLOO_SOCKET_IFNAME" not in os.environ  # each finds its own
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        torchrun([*(word.replace("10.0.0.1", self.address) for word in commands[rank][1:]), *self.more])


def wait_for_rounds(folder, number, started):
    metrics = folder / "0" / "runs" / "two" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < number:
        assert all(process.exitcode is None for process in started), said(folder)
        time.sleep(0.01)


def said(folder):
    return [path.read_text() for path in sorted(folder.glob("*/said"))]


@pytest.mark.slow
def test_both_are_killed_and_resume_each_from_its_own_folder(hosts, tmp_path):
    command = Torchrun(hosts.addresses[0], SETTINGS)
    started = hosts.start(tmp_path, command, command)
    wait_for_rounds(tmp_path, 3, started)
    hosts.kill()
    assert not list(tmp_path.glob("*/runs/two/summary.json"))
    command = Torchrun(hosts.addresses[0], ["--resume"])
    assert [process.join() or process.exitcode for process in hosts.start(tmp_path, command, command)] == [0, 0], said(
        tmp_path
    )
    assert "resuming after round" in said(tmp_path)[0]
    for rank in range(2):
        parts = {path.name for path in (tmp_path / f"{rank}").glob("runs/two/checkpoint/*/*.safetensors")}
        assert parts == {f"{rank}-of-2.safetensors"}

    undisturbed = tmp_path / "undisturbed"
    assert call(["train", "digits-mlp", "--workers", "2", "--out", str(undisturbed), *SETTINGS]) == (0, "")
    ours, expected = (load_file(at / "model.safetensors") for at in (tmp_path / "0" / "runs" / "two", undisturbed))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_another_learning_rate_is_named_on_both(hosts, tmp_path):
    train = ["train", "digits-mlp", "--out", "run"]
    codes, told = hosts.run_both(tmp_path, train, [*train, "--set", "optimizer.lr=.3"])
    assert codes == [1, 1], told
    for rank, values in enumerate(("0.1 here and 0.3 on rank 1", "0.3 here and 0.1 on rank 0")):
        errors = [line for line in told[rank].splitlines() if "error" in line]
        assert len(errors) == 1, told[rank]
        assert f"rank {rank}, round 0, start: optimizer.lr is {values}" in errors[0]
