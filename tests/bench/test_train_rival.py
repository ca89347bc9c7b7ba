"""bench/distributed/train_rival.py: DiLoCo against algorithm 1 on a quadratic; all methods for some steps on digits.

Two processes run everything one after the other, since most of a run this short is importing torch.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "bench" / "distributed"
TARGETS = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0, -1.0])]  # worker i minimizes |w - target|^2 / 2
QUADRATICS = [  # rounds, inner steps, inner lr, outer lr, outer momentum
    (4, 5, 0.1, 0.7, 0.9),
    (4, 5, 0.1, 0.7, 0.0),
    (6, 1, 0.1, 1.0, 0.0),  # averaged SGD
]


@pytest.fixture(scope="module")
def rivals(load_script):
    return load_script("distributed/train_rival.py")


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
import argparse, json, pathlib, sys
import torch, torch.distributed as dist
folder, runs, targets, quadratics = sys.argv[1], *map(json.loads, sys.argv[2:])
sys.path.insert(0, folder)
import train_rival as rivals
dist.init_process_group("gloo")
model = torch.nn.Linear(1, 1)
for weight, same in ((dist.get_rank(), False), (7, True)):
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, weight)
    assert rivals.replicas_agree(model) == same

def outcome(rounds, inner_steps, inner_lr, outer_lr, momentum):
    model = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False), torch.nn.BatchNorm1d(1))
    torch.nn.init.zeros_(model[0].weight)
    options = argparse.Namespace(lr=0.1, local_steps=inner_steps, outer_lr=outer_lr, outer_momentum=momentum)
    sync = rivals.diloco(model, options).sync
    inner = torch.optim.SGD(model[0].parameters(), lr=inner_lr)
    for _ in range(rounds):
        for _ in range(inner_steps):
            inner.zero_grad()
            (0.5 * (model[0].weight[0] - torch.tensor(targets[dist.get_rank()])).square().sum()).backward()
            inner.step()
        sync()
    assert rivals.replicas_agree(model)
    return model[0].weight[0].tolist()

outcomes = [outcome(*quadratic) for quadratic in quadratics]
if dist.get_rank() == 0:  # to a file: what two processes print comes mixed
    pathlib.Path(sys.argv[0]).with_name("outcomes.json").write_text(json.dumps(outcomes))
for arguments in runs:
    rivals.run(rivals.parse(arguments))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[list[torch.Tensor], dict[str, list[dict]]]:
    """What DiLoCo ended with on each quadratic, and the curves of the runs on digits by name."""
    folder = tmp_path_factory.mktemp("rivals")
    few = ["--steps", str(STEPS), "--eval-every", str(EVERY)]
    given = {method: ["--method", method, "--lr", str(lr), *few] for method, lr in RATES.items()}
    given["diverged"] = ["--method", "ddp", "--lr", "1e30", *few]
    given["stopped"] = ["--method", "local_sgd", "--lr", ".1", "--steps", "100000", "--max-seconds", ".2"]
    same = ["--task", "digits", "--hidden", "32", "--layers", "2", "--batch-size", "32", "--local-steps", str(PERIOD)]
    runs = [[*arguments, *same, "--out", str(folder / f"{name}.jsonl")] for name, arguments in given.items()]
    (folder / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [json.dumps(each) for each in (runs, [target.tolist() for target in TARGETS], QUADRATICS)]
    command = [*torchrun, str(folder / "worker.py"), str(FOLDER), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert json.loads((folder / "ddp.config.json").read_text())["workers"] == 2
    outcomes = json.loads((folder / "outcomes.json").read_text())
    curves = {name: list(map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())) for name in given}
    return [torch.tensor(outcome) for outcome in outcomes], curves


@pytest.fixture(scope="module")
def curves(ran) -> dict[str, list[dict]]:
    return ran[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(QUADRATICS)))
def test_diloco_is_algorithm_1(ran, number):
    rounds, inner_steps, inner_lr, outer_lr, momentum = QUADRATICS[number]
    theta, velocity = torch.zeros(3), torch.zeros(3)
    for _ in range(rounds):
        ends = []
        for target in TARGETS:
            w = theta
            for _ in range(inner_steps):
                w = w - inner_lr * (w - target)
            ends.append(w)
        delta = sum(theta - w for w in ends) / 2
        velocity = momentum * velocity + delta
        theta = theta - outer_lr * (delta + momentum * velocity)  # Nesterov, Sutskever et al. 2013, as in torch
    assert torch.allclose(ran[0][number], theta, atol=1e-6)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_time_limit_ends_training_after_an_averaging(curves):
    last = curves["stopped"][-1]
    assert last["stopped"]
    assert last["replicas_agree"]
    assert last["step"] % PERIOD == 0
    assert 0.1 < last["train_s"] < 5


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_training(curves):
    (line,) = curves["diverged"]
    assert line["stopped"]
    assert line["train_loss"] is None
    assert line["step"] == EVERY
