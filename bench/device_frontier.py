"""Accuracy against bytes on one GPU: CIFAR-10 at the recipes' full length, with 64 to 512 channels.

    SKERRY_DATA=... python bench/device_frontier.py [--device cuda] [--minutes 8] [--out runs/device] [--small]

Where Skerry is not installed: ``PYTHONPATH=src SKERRY_DATA=... python bench/device_frontier.py``. It trains
``resnet18-cifar`` and ``vgg-cifar`` with random crops and flips, by those of the methods that the recipe has, one seed.
Rates are those of the recipes, found at 16 to 128 channels, so they are not tuned here. It prints a table and writes
``OUT/RECIPE.png``: accuracy against MB per worker. When the minutes are over, runs are ended and named; the same
command goes on with them. Every run is a ``skerry train`` of its own, whose output is in ``OUT/RECIPE/METHOD.log``.

Workers are stepped side by side as one process per worker on the same device, and two methods at a time. Their kernels
take turns: while one process prepares a batch or launches kernels, the device works for another, so it has work nearly
all the time, on several cores. What CUDA streams in one process, or steps of all workers in one batch (vmap), could do
beyond that: kernels of several small subnets at the same moment, where one alone does not fill the device. Each process
also has a CUDA context of its own (about half a GB). So the times in the table say how long this took here, not how
long workers take that have a device each; accuracies, bytes and operations do not depend on it.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import Run, grouped, load_run, to_markdown
from skerry.experiments.reports.pictures import frontier_picture
from skerry.experiments.runs.execute import configure
from skerry.model.device import chosen_device

METHODS = ("ist", "relay", "narrow", "local_sgd", "ensemble", "single")
WIDE: dict[str, dict[str, Any]] = {
    "resnet18-cifar": {"model.width": 64},
    "vgg-cifar": {"model.width": 64, "model.hidden": 1024},
}
SMALL: dict[str, Any] = {"model.width": 4, "data.images": 400, "batch_size": 16, "rounds": 2, "local_steps": 2}
EVALUATIONS = 6
GRACE_S = 20.0


@dataclass(frozen=True)
class Training:
    """One run of the command line."""

    recipe: str
    method: str
    folder: Path
    settings: dict[str, Any]
    device: str

    @property
    def command(self) -> list[str]:
        """What runs it, or goes on with it."""
        words = [sys.executable, "-m", "skerry", "train", self.recipe, "--method", self.method, "--device", self.device]
        words += ["--runtime", "serial" if self.method == "single" else "processes", "--out", str(self.folder)]
        words += ["--resume"] if (self.folder / "config.json").exists() else []
        return words + [word for name, value in self.settings.items() for word in ("--set", f"{name}={value}")]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; its output goes into a file beside its folder."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.folder.with_suffix(".log")

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return (self.folder / "summary.json").exists()

    @property
    def found(self) -> Run | None:
        """What there is of it, if it has been evaluated."""
        run = load_run(self.folder, self.method) if (self.folder / "config.json").exists() else None
        return run if run is not None and points(run) else None


def points(run: Run) -> list[tuple[float, float, float]]:
    """Return (bytes per worker, accuracy, 0) at each evaluation; only the last one where nothing is sent."""
    found = [(m["bytes_due"], m["accuracy"], 0.0) for m in run.metrics if m["accuracy"] is not None]
    return found if found and found[-1][0] else found[-1:]


def trainings(out: Path, device: str, small: bool) -> list[Training]:
    """Return all runs, the recipes in turn, so that an early end leaves some of both."""
    found = []
    for method in METHODS:
        for recipe in WIDE:
            if method in RECIPES[recipe]().methods:
                settings = SMALL | ({"workers": 2} if method != "single" else {}) if small else dict(WIDE[recipe])
                rounds = configure(recipe, method, settings).rounds
                settings |= {"data.crops_and_flips": "true", "threads": 1, "timeout_s": 60}
                settings["eval_every"] = rounds if small else max(1, rounds // EVALUATIONS)
                found.append(Training(recipe, method, out / recipe / method, settings, device))
    return found


def run_all(runs: list[Training], seconds: float, at_once: int) -> list[str]:
    """Run what is not finished until the seconds are over, so many at once; return what failed, a line each."""
    until, waiting = time.monotonic() + seconds, [run for run in runs if not run.done]
    running: dict[str, tuple[Training, subprocess.Popen[bytes]]] = {}
    failed = []
    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < at_once:
                run = waiting.pop(0)
                run.folder.parent.mkdir(parents=True, exist_ok=True)
                running[f"{run.recipe} {run.method}"] = run, run.start()
            for name, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if process.returncode:
                        failed.append(f"{name}: {run.log.read_text().strip().rpartition(chr(10))[2]} (see {run.log})")
                    print(f"{name}: {'failed' if process.returncode else 'done'}", file=sys.stderr, flush=True)
            time.sleep(0.1)
    finally:
        for _, process in running.values():
            process.terminate()  # it ends its processes; its files stay whole
        for _, process in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
    return failed


def main() -> int:
    """Run, and print what there is then; the exit code is 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto: CUDA where there is one")
    parser.add_argument("--minutes", type=float, default=8.0, help="runs are ended after so many")
    parser.add_argument("--at-once", type=int, default=2, help="methods at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/device"), help="folder for runs and pictures")
    parser.add_argument("--small", action="store_true", help="tiny runs, to test this script")
    options = parser.parse_args()
    device = chosen_device(options.device)
    try:  # decodes the images once, or says what is missing
        RECIPES["vgg-cifar"]().task(configure("vgg-cifar", "ist", {}))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    runs = trainings(options.out, options.device, options.small)
    failed = run_all(runs, 60 * options.minutes, options.at_once)
    print(f"python bench/device_frontier.py {' '.join(sys.argv[1:])} ({device})")
    for recipe in WIDE:
        found = [run for each in runs if each.recipe == recipe and (run := each.found)]
        print(f"\n{recipe}\n")
        if found:
            print(to_markdown([row for row, _ in grouped(found)]))
            picture = options.out / f"{recipe}.png"
            frontier_picture({run.config["method"]: points(run) for run in found}, "accuracy", picture)
            print(picture)
    for each in runs:
        if not each.done:
            of = each.found
            had = f"{of.num_rounds} of {of.config['rounds']} rounds" if of else "not evaluated"
            print(f"missing: {each.recipe} {each.method} ({had})")
    print("".join(f"failed: {line}\n" for line in failed), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
