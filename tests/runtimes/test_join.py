"""``Processes.join`` as launchers other than ``skerry.launch`` start processes; the serial runtime is the meaning.

Ray Train and Accelerate make the process group before the user's code runs, so processes with a group stand in for
them. srun itself does not run here: the variables that it sets do.
"""

import os
import re
import socket
from pathlib import Path

import pytest
import torch
from machines import run_on_machines
from safetensors.torch import load_file

from skerry.runtimes.distributed import meeting
from skerry.runtimes.distributed.meeting import Place, adopt_srun
from skerry.runtimes.serial import or_serial

SCRIPT = """
import os, sys, time, warnings
from datetime import timedelta
import torch, torch.distributed as dist
from torch import nn
import skerry
warnings.simplefilter("ignore")

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

def train(runtime, **more):
    x, y, model = torch.linspace(-1, 1, 200).view(50, 4), torch.arange(50) % 2, net()
    return skerry.train(
        model, nn.functional.cross_entropy,
        skerry.Shards(x, y, skerry.split(y, 2, "iid", seed=0), batch_size=10, seed=0),
        plan=skerry.discover(model, x), algorithm=skerry.ist(2, local_steps=3, reshuffle=0.5, optimizer_state="travel"),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), num_rounds=3, runtime=runtime,
        test=(x, y), **more,
    )
"""


def started(tmp_path: Path, body: str, environments: list[dict[str, str]]) -> list[tuple[int | None, str]]:
    """Run the script in a process for each environment; return their codes and what they said."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + body.replace("TMP", str(tmp_path)))
    return list(zip(*run_on_machines(tmp_path, *[path] * len(environments), environments=environments), strict=True))


def of_torchrun(rank: int, port: int) -> dict[str, str]:
    return {"RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_serial(tmp_path, folder):
    """What was exported is what the serial runtime trains."""
    scope: dict = {}
    exec(SCRIPT, scope)
    expected = scope["train"](None).model.state_dict()
    for name, tensor in load_file(tmp_path / folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name])


BACKENDS = {
    "gloo": "dist.init_process_group('gloo')",
    # Takes part in nothing, as NCCL takes no tensors of the CPU.
    "fake": """
import torch.testing._internal.distributed.fake_pg
store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=os.environ["RANK"] == "0")
dist.init_process_group("fake", store=store, rank=int(os.environ["RANK"]), world_size=2)
""",
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_that_exists_is_used_and_stays(tmp_path, port, backend):
    body = f"""
{BACKENDS[backend]}
for turn in range(2):
    with skerry.Processes.join() as runtime:
        train(runtime).export(f"TMP/trained{{turn}}")
train(skerry.Processes.join()).export("TMP/trained2")  # without leaving it
assert dist.is_initialized()
if {backend == "gloo"}:
    ones = torch.ones(3)
    dist.all_reduce(ones)
    assert ones.tolist() == [2, 2, 2]
dist.destroy_process_group()
print("well")
"""
    ended = started(tmp_path, body, [of_torchrun(rank, port) for rank in range(2)])
    assert ended == [(0, "well\n")] * 2
    for turn in range(3):
        assert_serial(tmp_path, f"trained{turn}")


def test_the_groups_nccl_sums_what_all_hold_and_the_gradients_of_ddp(tmp_path, port):
    """gloo stands in for NCCL, which takes a GPU per process."""
    body = """
import skerry.runtimes.distributed.processes as processes
dist.init_process_group("gloo")
assert not processes._has_nccl(torch.device("cpu"))
assert processes._has_nccl(torch.device("cuda")) is False
processes._has_nccl = lambda device: True
summed, all_reduce = [], dist.all_reduce
def counted(tensor, op=None, group=None):
    summed.append((group is dist.group.WORLD, tensor.dtype))
    return all_reduce(tensor, group=group)
dist.all_reduce = counted
with skerry.Processes.join() as runtime:
    train(runtime).export("TMP/trained")  # the bias of the output is on all workers
    assert (True, torch.float64) in summed
    assert runtime.synchronized(torch.nn.Linear(1, 1))[0].process_group is dist.group.WORLD
print("well")
"""
    ended = started(tmp_path, body, [of_torchrun(rank, port) for rank in range(2)])
    assert ended == [(0, "well\n")] * 2
    assert_serial(tmp_path, "trained")


def test_without_with_the_one_that_ends_last_is_not_ended_by_the_others(tmp_path, port):
    body = """
train(skerry.Processes.join(timeout_s=1.0)).export("TMP/trained")
if os.environ["RANK"] == "1":  # the first one has the store
    time.sleep(1.5)  # longer than processes wait for each other
print("well")
"""
    ended = started(tmp_path, body, [of_torchrun(rank, port) for rank in range(2)])
    assert ended == [(0, "well\n")] * 2
    assert_serial(tmp_path, "trained")


def test_without_with_a_failure_is_told_to_the_others(tmp_path, port):
    body = """
runtime = skerry.Processes.join()
if runtime.rank == 1:
    raise KeyError("no such column")
train(runtime)
"""
    (code, said), (other_code, trace) = started(tmp_path, body, [of_torchrun(rank, port) for rank in range(2)])
    assert (code, other_code) == (1, 1)
    assert re.search(r"skerry: error: rank 0.*rank 1 ended: KeyError: 'no such column'", said)
    assert "Traceback" not in said
    assert trace.rstrip().endswith("KeyError: 'no such column'")


@pytest.mark.parametrize("who", [0, 1])
def test_without_with_one_that_exits_early_does_not_leave_the_others_waiting(tmp_path, port, who):
    body = f"""
runtime = skerry.Processes.join(timeout_s=2.0)
def leave(session, record):
    if record.round == 1 and runtime.rank == {who}:
        sys.exit(3)
train(runtime, callbacks=[skerry.callbacks.Callback(on_round=leave)])
"""
    ended = started(tmp_path, body, [of_torchrun(rank, port) for rank in range(2)])
    assert all(code for code, _ in ended), ended
    assert f"rank {who} has ended, and others wait for it" in ended[1 - who][1]


def of_srun(rank, **more):
    """What srun sets in a task of a step of two on one node."""
    found = {
        "PROCID": f"{rank}", "STEP_NUM_TASKS": "2", "NTASKS": "2", "LOCALID": f"{rank}", "NODEID": "0", "JOB_ID": "41",
        "STEP_ID": "0", "STEP_NODELIST": "node7", "STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip
    return {f"SLURM_{name}": value for name, value in (found | more).items()}


def test_srun_starts_them(tmp_path, port):
    job = str(port)  # of jobs that run at the same time, so that tests beside this one get other ports
    body = """
train(skerry.Processes.join(timeout_s=1.0)).export("TMP/trained")
if os.environ["RANK"] == "0":
    time.sleep(1.5)  # longer than processes wait for each other
print(os.environ["RANK"], os.environ["LOCAL_RANK"])
"""
    ended = started(tmp_path, body, [of_srun(rank, JOB_ID=job) for rank in range(2)])
    assert ended == [(0, "0 0\n"), (0, "1 1\n")]
    assert_serial(tmp_path, "trained")


def test_without_a_runtime_each_of_several_processes_is_warned(monkeypatch):
    monkeypatch.setattr(meeting.os, "environ", of_srun(0))
    with pytest.warns(UserWarning, match=r"2 processes were started together.*skerry\.Processes\.join"):
        assert or_serial(None).num_processes == 1
    for one in ({}, of_srun(0, STEP_NUM_TASKS="1"), of_srun(0) | {"RANK": "0", "WORLD_SIZE": "1"}):
        monkeypatch.setattr(meeting.os, "environ", one)
        or_serial(None)  # a warning would be an error


@pytest.mark.parametrize(
    ("srun", "address", "local"),
    [
        ({"STEP_NODELIST": "node[07-09,12]", "STEP_TASKS_PER_NODE": "2(x3),1", "STEP_NUM_TASKS": "7"}, "node07", "2"),
        ({"STEP_NODELIST": "a3,b[1-2]", "STEP_TASKS_PER_NODE": "1(x3)", "STEP_NUM_TASKS": "3"}, "a3", "1"),
        (
            {"STEP_NODELIST": "n[1-2]-ib", "STEP_TASKS_PER_NODE": "4,3", "STEP_NUM_TASKS": "7", "NODEID": "1"},
            "n1-ib",
            "3",
        ),
        ({}, "127.0.0.1", "2"),
    ],
)
def test_what_srun_says_is_said_as_torchrun_says_it(monkeypatch, srun, address, local):
    said = of_srun(1, **srun)
    monkeypatch.setattr(meeting.os, "environ", dict(said))
    adopt_srun()
    place = Place.of_environment()
    assert (place.host, place.rank, place.num_processes) == (address, 1, int(said["SLURM_STEP_NUM_TASKS"]))
    assert (place.port, place.serves) == (15000 + 4100, False)
    assert os.environ["LOCAL_WORLD_SIZE"] == local
    theirs = {"RANK": "0", "WORLD_SIZE": "1"}  # torchrun inside of srun, or set by hand
    monkeypatch.setattr(meeting.os, "environ", said | theirs)
    adopt_srun()
    assert "MASTER_PORT" not in os.environ
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    monkeypatch.setattr(meeting.os, "environ", said | given)
    adopt_srun()
    assert {name: os.environ[name] for name in given} == given
