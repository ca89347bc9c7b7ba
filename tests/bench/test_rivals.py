"""bench/rivals.py: DiLoCo against algorithm 1 written out for a quadratic, and all methods for some steps on digits.

Two processes run the three methods one after the other: most of a run this short is importing torch.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

BENCH = Path(__file__).parents[2] / "bench"
TARGETS = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0, -1.0])]  # worker i minimizes |w - target|^2 / 2


@pytest.fixture(scope="module")
def rivals() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # torch.distributed.optim compiles some of its own with what torch has deprecated.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        patch.syspath_prepend(str(BENCH))  # as when it is run as a script: it imports its neighbour
        spec = importlib.util.spec_from_file_location("rivals", BENCH / "rivals.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def _simulate(rivals, rounds: int, inner_steps: int, inner_lr: float, outer_lr: float, momentum: float) -> Tensor:
    """Two workers in turn, each with its own replica and its own outer optimizer; what they end with."""
    replicas = [nn.Linear(3, 1, bias=False) for _ in TARGETS]
    for replica in replicas:
        nn.init.zeros_(replica.weight)
    outers = [rivals.Outer(replica.parameters(), lr=outer_lr, momentum=momentum) for replica in replicas]
    for _ in range(rounds):
        for replica, target in zip(replicas, TARGETS, strict=True):
            inner = torch.optim.SGD(replica.parameters(), lr=inner_lr)
            for _ in range(inner_steps):
                inner.zero_grad()
                (0.5 * (replica.weight[0] - target).square().sum()).backward()
                inner.step()
        delta = torch.stack([outer.move() for outer in outers]).mean(0)
        for outer in outers:
            outer.step(delta.clone())
    assert torch.equal(replicas[0].weight, replicas[1].weight)
    return replicas[0].weight[0].detach()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_outer_step_is_algorithm_1(rivals, momentum):
    theta, velocity = torch.zeros(3), torch.zeros(3)
    for _ in range(4):
        ends = []
        for target in TARGETS:
            w = theta
            for _ in range(5):
                w = w - 0.1 * (w - target)
            ends.append(w)
        delta = sum(theta - w for w in ends) / 2
        velocity = momentum * velocity + delta
        theta = theta - 0.7 * (delta + momentum * velocity)  # Nesterov, Sutskever et al. 2013, as in torch
    assert torch.allclose(_simulate(rivals, 4, 5, 0.1, 0.7, momentum), theta, atol=1e-6)


def test_one_inner_step_and_a_plain_outer_step_is_averaged_sgd(rivals):
    theta = torch.zeros(3)
    for _ in range(6):
        theta = theta - 0.1 * sum(theta - target for target in TARGETS) / 2
    assert torch.allclose(_simulate(rivals, 6, 1, 0.1, 1.0, 0.0), theta, atol=1e-6)


def _options(**changed: float | None) -> argparse.Namespace:
    given = {"steps": 1000, "max_seconds": math.inf, "eval_every": None, "eval_every_s": 5.0}
    return argparse.Namespace(**given | changed)


@pytest.mark.parametrize(
    ("step", "step_s", "train_s", "period", "changed", "expected"),
    [
        (100, 0.1, 10.0, 1, {}, 150),  # 5 s at 0.1 s a step
        (100, 0.1, 10.0, 20, {}, 140),  # the nearest whole number of periods
        (100, 1.0, 10.0, 20, {}, 120),  # never less than one
        (100, 0.1, 10.0, 20, {"eval_every": 60}, 160),
        (960, 0.1, 10.0, 20, {"eval_every": 60}, 1000),
        (1000, 0.1, 10.0, 20, {}, 1000),  # done
        (100, 0.1, 10.0, 20, {"max_seconds": 12.0}, 120),  # what time is left for
        (100, 0.1, 11.5, 20, {"max_seconds": 12.0}, 100),  # nearer to the end than after one more
    ],
)
def test_next_stop(rivals, step, step_s, train_s, period, changed, expected):
    assert rivals.next_stop(step, step_s, train_s, period, _options(**changed)) == expected


def test_steps_that_end_within_a_period_are_refused(rivals, capsys):
    given = ["--task", "digits", "--lr", ".1", "--steps", "25", "--local-steps", "10", "--out", "x", "--method"]
    with pytest.raises(SystemExit):
        rivals.parse([*given, "local_sgd"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(name in error for name in ("--steps", "25", "--local-steps", "10"))
    assert rivals.parse([*given, "ddp"]).steps == 25


RATES = {"ddp": 0.1, "local_sgd": 0.1, "diloco": 0.01}
STEPS, PERIOD, EVERY = 80, 10, 20
WEIGHTS = 64 * 32 + 32 * 32 + 32 * 10 + 10 + 4 * 32  # of the MLP 64-32-32-10: matrices, the last bias, batch norms
STATISTICS = 4 * 32

WORKER = """
import json, sys
import torch, torch.distributed as dist
bench, runs = sys.argv[1:]
sys.path.insert(0, bench)
import rivals
dist.init_process_group("gloo")
model = torch.nn.Linear(1, 1)
for weight, same in ((dist.get_rank(), False), (7, True)):
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, weight)
    assert rivals.replicas_agree(model) == same
for arguments in json.loads(runs):
    rivals.run(rivals.parse(arguments))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("rivals")
    few = ["--steps", str(STEPS), "--eval-every", str(EVERY)]
    given = {method: ["--method", method, "--lr", str(lr), *few] for method, lr in RATES.items()}
    given["diverged"] = ["--method", "ddp", "--lr", "1e30", *few]
    given["stopped"] = ["--method", "local_sgd", "--lr", ".1", "--steps", "100000", "--max-seconds", ".2"]
    same = ["--task", "digits", "--hidden", "32", "--layers", "2", "--batch-size", "32", "--local-steps", str(PERIOD)]
    runs = [[*arguments, *same, "--out", str(folder / f"{name}.jsonl")] for name, arguments in given.items()]
    (folder / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(folder / "worker.py"), str(BENCH), json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert json.loads((folder / "ddp.config.json").read_text())["workers"] == 2
    return {name: list(map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())) for name in given}


@pytest.mark.parametrize("method", RATES)
def test_a_method_trains_replicas_that_agree(curves, method):
    lines = curves[method]
    assert [line["step"] for line in lines] == list(range(EVERY, STEPS + 1, EVERY))
    times = [line["train_s"] for line in lines]
    assert times == sorted(times)
    assert times[0] > 0
    assert lines[-1]["accuracy"] > 0.9
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert [line.get("replicas_agree") for line in lines] == [None, None, None, True]
    assert not any(line["stopped"] for line in lines)
    # Two processes: 2(n-1)/n = 1.
    a_step = 4 * WEIGHTS if method == "ddp" else 4 * (WEIGHTS + STATISTICS) / PERIOD
    assert [line["bytes_model"] for line in lines] == [step * a_step for step in range(EVERY, STEPS + 1, EVERY)]


def test_the_time_limit_ends_training_after_an_averaging(curves):
    last = curves["stopped"][-1]
    assert last["stopped"]
    assert last["replicas_agree"]
    assert last["step"] % PERIOD == 0
    assert 0.1 < last["train_s"] < 5


def test_a_loss_that_is_not_finite_ends_training(curves):
    (line,) = curves["diverged"]
    assert line["stopped"]
    assert line["train_loss"] is None
    assert line["step"] == EVERY
