"""Whether training on a device gives what the CPU gives, and what Skerry costs there beside plain PyTorch.

    python bench/device.py [--device cuda|cpu|auto] [--small]    # one GPU: at most 6 minutes; no data, no network

Where Skerry is not installed: ``PYTHONPATH=src python bench/device.py``. TF32 is off. The last line says what failed of
the first two checks (exit code 1); of the others, a row that misses its aim says so.

- *serial against CPU*: small nets with batch norm are trained by several methods, all workers in one process. The
  largest difference of a tensor of the full model, as a part of its norm; in float64, rounding hides nothing.
- *processes against serial*: the same, with one process per worker; all share the device.
- *step*: a training step of a subnet of a quarter's width, in times of a net of that width written by hand.
- *cut*, *write back*: in times of ``copy_`` of the same bytes into existing tensors, contiguous units and random ones.
- *round*: what a round of 4 workers with 20 local steps takes beyond these steps in a plain loop: cutting, making
  optimizers, averaging, diagnosis.
- *memory*: the most that training one worker's subnet of 8 takes, as a part of what training the whole net takes.

Times are medians, measured in turn, each after waiting for the device.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "cost"))

from discovery_and_subnets import SmallResNet, cut_times, medians, mlp, parameters_m, step_of, step_times

import skerry
from skerry.experiments.models.mlp import MLP
from skerry.experiments.models.resnet import ResNet
from skerry.experiments.models.vgg import VGG
from skerry.experiments.recipes.cifar import channel_rules
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.model.device import chosen_device
from skerry.partitions import Disjoint
from skerry.plan import In, Out
from skerry.subnet import extract
from skerry.training import TheoryWarning

METHODS = {
    "ist": skerry.ist, "relay": skerry.relay, "narrow": skerry.narrow, "local_sgd": skerry.algorithms.local_sgd
}  # fmt: skip
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: MLP([9, 24, 16, 4]), (9,)),
    "CNN": (lambda: VGG([1, 1], width=8, hidden=16, image_size=8, classes=4), (3, 8, 8)),
}
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True)
class Row:
    """A line of the table. ``measured`` is met if it is at most ``aim``."""

    what: str
    aim: float
    measured: float
    form: str = ".2f"
    must: bool = False

    def __str__(self) -> str:
        met = "met" if self.measured <= self.aim else "**aim missed**"
        return f"| {self.what} | {self.aim:{self.form}} | {self.measured:{self.form}} | {met} |"


# --- the same as on the CPU -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A training: the method, the net, the type of its numbers."""

    method: str
    net: str
    dtype: str

    def export(self, folder: Path, workers: int, device: str, runtime: skerry.Processes | None = None) -> None:
        """Train and write the full model to ``folder``."""
        torch.manual_seed(0)
        build, shape = NETS[self.net]
        dtype = getattr(torch, self.dtype)
        model, x, y = build().to(dtype), torch.randn(160, *shape, dtype=dtype), torch.arange(160) % 4
        skerry.train(
            model, F.cross_entropy,
            skerry.Shards(x, y, skerry.split(y, workers, "iid", seed=0), batch_size=16, seed=0),
            plan=skerry.discover(model, x[:8]), algorithm=METHODS[self.method](workers, local_steps=3),
            optimizer=sgd, num_rounds=4, runtime=runtime, device=device, verify=False,
        ).export(folder)  # fmt: skip


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all trainings here."""
    return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)


def quiet() -> None:
    """Leave TF32 off, and say nothing of trainings this short."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.simplefilter("ignore", TheoryWarning)


def work(runtime: skerry.Processes, cases: list[Case], device: str, folder: Path) -> None:
    """Train all cases, as one of the processes."""
    quiet()
    for k, case in enumerate(cases):
        case.export(folder / f"{k}-processes", runtime.num_processes, device, runtime)


def check_rows(device: torch.device, small: bool) -> Iterator[Row]:
    """Compare serial training on the device with that on the CPU, and processes with serial training."""
    for workers in (2,) if small else (2, 4):
        cases = [Case(m, n, d) for m in METHODS for n in NETS for d in TOLERANCE if device.type != "mps" or "32" in d]
        cases = cases[:: 5 if small else 1]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for k, case in enumerate(cases):
                case.export(folder / f"{k}-CPU", workers, "cpu")
                case.export(folder / f"{k}-serial", workers, str(device))
            skerry.launch(work, workers, cases, str(device), folder, timeout_s=60.0)
            for one, other in (("serial", "CPU"), ("processes", "serial")):
                for dtype in dict.fromkeys(case.dtype for case in cases):
                    found = [
                        difference(*(load_file(folder / f"{k}-{each}" / "model.safetensors") for each in (one, other)))
                        for k, case in enumerate(cases)
                        if case.dtype == dtype
                    ]
                    what = f"{one} against {other}, {workers} workers, {dtype}, worst of {len(found)} trainings"
                    yield Row(what, TOLERANCE[dtype], max(found), ".1e", must=True)


def difference(found: dict[str, Tensor], meant: dict[str, Tensor]) -> float:
    """Return the largest difference of a tensor, as a part of its norm; infinite if one is missing or not finite."""
    if found.keys() != meant.keys():
        return float("inf")
    parts = [((found[n] - t).double().norm() / t.double().norm().clamp(min=1e-30)).item() for n, t in meant.items()]
    return max(part if part == part else float("inf") for part in parts)


# --- what it costs ----------------------------------------------------------------------------------------------------


def waits(device: torch.device) -> Callable[[], object]:
    """Return a function that waits until the device has done what it was given."""
    return torch.get_device_module(device).synchronize


def step_rows(device: torch.device, small: bool) -> Iterator[Row]:
    """Compare a step of a subnet with that of a net written by hand, and the latter with its like."""
    width, batch, thin = (256, 4, 32) if small else (8192, 128, 1)

    def resnet(part: int) -> nn.Module:
        return SmallResNet([c // part // thin for c in (512, 1024)], [c // part // thin for c in (512, 1024, 2048)])

    nets: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
        "MLP": (lambda part: mlp(width // part), torch.randn(batch, 784)),
        "ResNet": (resnet, torch.randn(batch, 3, 32, 32)),
    }
    for name, (build, x) in nets.items():
        model = build(1)
        plan = skerry.discover(model, x[:2])
        model, x = model.to(device), x.to(device)
        deals = 1 if small else 6
        hand, again, of_subnet = step_times(model, plan, partial(build, 4), x, waits(device), deals=deals)
        of = f"{name} of {parameters_m(model)}, by hand {1e3 * hand:.2f} ms, another by hand {again / hand:.2f}x"
        yield Row(f"step of a subnet, {of}", 1.05, of_subnet / hand)


@torch.no_grad()
def cut_rows(device: torch.device, small: bool) -> Iterator[Row]:
    """Compare cutting a subnet of a quarter's width, and writing it back, with copying as many bytes."""
    for width in (400,) if small else (9600, 31200):
        with device:
            model = mlp(width)
        plan = skerry.Plan.from_rules(model, {"0": Out("a"), "2": (In("a"), Out("b")), "4": In("b")})
        contiguous = torch.cat([torch.arange(a.start, a.start + a.num_units // 4) for a in plan.axes])
        dealt = Disjoint(4).assign(plan.axes, round=0).units(0)
        for kind, units, aim in (("contiguous", contiguous, 3.0), ("random", dealt, 12.0)):
            size, (copied, _, cut, back) = cut_times(model, plan, units, 21, waits(device))
            of = f"{kind} units, MLP of {parameters_m(model)}, copying {size / 1e6:.0f} MB {1e3 * copied:.2f} ms"
            yield Row(f"cut, {of}", aim, cut / copied)
            yield Row(f"write back, {of}", aim, back / copied)


def round_rows(device: torch.device, small: bool) -> Iterator[Row]:
    """Compare rounds with their local steps in a plain loop."""
    hidden, width, blocks, side, batch = (64, 4, (1,), 8, 4) if small else (8192, 64, (2, 2, 2, 2), 32, 128)
    mlp3 = MLP([4096, hidden, hidden, hidden, 12])
    resnet = ResNet(blocks, width=width, classes=12)
    for name, model, plan, shape in (
        ("MLP", mlp3, skerry.Plan.from_rules(mlp3, mlp_rules(3)), (4096,)),
        ("ResNet-18", resnet, skerry.Plan.from_rules(resnet, channel_rules()), (3, side, side)),
    ):
        x, y = torch.randn(batch, *shape, device=device), torch.arange(batch, device=device) % 12
        repeats = 1 if small else 7
        with skerry.Session(
            model, plan=plan, algorithm=skerry.ist(4, local_steps=20), optimizer=sgd, num_rounds=repeats + 2,
            device=device, loss_fn=F.cross_entropy, test=(x.cpu(), y.cpu()),
        ) as session:  # fmt: skip
            rounds, assignment = session.rounds(), session.setup.assignment(0)
            nets = [extract(model, plan, assignment.units(w)).train() for w in range(4)]
            loops = [plain_loop(net, x, y) for net in nets]

            def one_round(rounds: Iterator[skerry.training.Round] = rounds, x: Tensor = x, y: Tensor = y) -> None:
                for worker in next(rounds).workers:
                    for _ in range(worker.num_steps):
                        worker.step(F.cross_entropy(worker.subnet(x), y), y)

            def steps_alone(loops: list[Callable[[], None]] = loops) -> None:
                for loop in loops:
                    loop()

            took, alone = medians([one_round, steps_alone], repeats, waits(device))
        of = f"{name} of {parameters_m(model)}, 4 x 20 local steps {1e3 * alone:.0f} ms"
        yield Row(f"round beyond its steps, {of}", 0.05, took / alone - 1, ".1%")


def plain_loop(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that takes 20 steps."""
    optimizer = sgd(net)

    def run() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    return run


def memory_rows(device: torch.device, small: bool) -> Iterator[Row]:
    """Compare the most memory of training a subnet of 8 with that of training the whole net."""
    if not hasattr(torch.get_device_module(device), "max_memory_allocated"):
        print("| memory of a subnet of 8, as a part of the whole net's | | not measured: not counted here | |")
        return
    width, thin = (512, 16) if small else (16384, 1)
    for name, model, x in (
        ("MLP", mlp(width), torch.randn(128, 784)),
        ("ResNet", SmallResNet([512 // thin, 1024 // thin], [c // thin for c in (512, 1024, 2048)]),
         torch.randn(128, 3, 32, 32)),
    ):  # fmt: skip
        plan = skerry.discover(model, x[:2])
        subnet = extract(model, plan, Disjoint(8).assign(plan.axes, round=0).units(0))
        step_of(copy.deepcopy(subnet).to(device), x.to(device))()  # what libraries keep is not counted
        part, whole = (peak_bytes(net, x.to(device)) for net in (subnet, model))
        of = f"{name} of {parameters_m(model)}, {part / 1e6:.0f} of {whole / 1e6:.0f} MB"
        yield Row(f"memory of a subnet of 8, {of}", 1 / 8, part / whole, ".3f")


def peak_bytes(net: nn.Module, x: Tensor) -> int:
    """Return the most memory that a copy of ``net`` and three steps of it take on the device of ``x``."""
    memory = torch.get_device_module(x.device)
    memory.empty_cache()
    memory.reset_peak_memory_stats(x.device)
    before = memory.memory_allocated(x.device)
    step = step_of(copy.deepcopy(net).to(x.device), x)
    for _ in range(3):
        step()
    return int(memory.max_memory_allocated(x.device) - before)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu, mps; auto: CUDA where there is one")
    parser.add_argument("--small", action="store_true", help="tiny nets, to test this script")
    options = parser.parse_args()
    device, began = chosen_device(options.device), time.perf_counter()
    torch.set_num_threads(1)
    quiet()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"
    print(f"{name}, torch {torch.__version__}, `python bench/device.py {' '.join(sys.argv[1:])}`\n")
    print("| what | aim: at most | measured | |\n|---|---:|---:|---|", flush=True)
    wrong = []
    for rows in (check_rows, step_rows, cut_rows, round_rows, memory_rows):
        try:
            for row in rows(device, options.small):
                print(row, flush=True)
                if row.must and not row.measured <= row.aim:
                    wrong.append(f"{row.what}: {row.measured:.1e}, expected at most {row.aim:.0e}")
        except (RuntimeError, ValueError, OSError) as error:  # the other tables are worth having
            wrong.append(f"{rows.__name__}: {' '.join(str(error).split())[-500:]}")
            print(f"| {wrong[-1]} | | | **failed** |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s, float32 without TF32; load {os.getloadavg()[0]:.1f}")
    if wrong:
        print("failed: " + "; ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
