"""Accuracy against bytes at equal operations a worker: methods at several numbers of local steps, best of their rates.

    SKERRY_DATA=... python bench/frontier.py fashion-mlp          # runs that are done are kept
    skerry results runs/results --out docs/results.md

For each method and number of local steps the rates are tried with seed 0; the best (by the recipe's first metric, on
the test set) is run with the other seeds. Two runs at a time, one thread each: two processor cores. ``--budget`` is the
part of the recipe's operations that every run gets: fewer rounds for all methods alike.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry.comparison import load_run
from skerry.recipes import RECIPES
from skerry.results import RATE, main_metric

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A method with the numbers of local steps to try, and its rates."""

    method: str
    local_steps: tuple[int, ...]
    rates: tuple[float, ...]
    settings: Settings = field(default_factory=dict)


WIDE, DILOCO = (0.01, 0.02, 0.05), (5e-4, 1e-3, 2e-3)
GRIDS: dict[str, tuple[Line, ...]] = {
    "fashion-mlp": (
        Line("ist", (25, 50, 100, 400), (0.1, 0.2, 0.4)),
        Line("ist", (50,), (0.1, 0.2, 0.4), {"partition.reshuffle": 1.0}),
        Line("narrow", (50, 400), (0.05, 0.1, 0.2)),
        Line("local_sgd", (20, 77, 154), (0.02, 0.05, 0.1)),
        Line("local_sgd", (20,), (0.02, 0.05, 0.1), {"optimizer_state": "stay"}),
        Line("diloco", (20, 77, 154), DILOCO),
        Line("ensemble", (100,), (0.05, 0.1, 0.2)),
        Line("federated_dropout", (50,), (0.1, 0.2, 0.4)),
        Line("fedrolex", (50,), (0.05, 0.1, 0.2)),
        Line("heterofl", (50,), (0.05, 0.1, 0.2)),
        Line("single", (77,), (0.02, 0.05, 0.1)),
    ),
    "speech-mlp3": (
        Line("ist", (20, 50, 100), (0.05, 0.1, 0.2)),
        Line("ist", (50,), (0.05, 0.1, 0.2), {"partition.reshuffle": 0.1}),
        Line("narrow", (20, 100), (0.02, 0.05, 0.1)),
        Line("local_sgd", (20, 40, 80), WIDE),
        Line("local_sgd", (20,), WIDE, {"optimizer_state": "stay"}),
        Line("diloco", (10, 20, 40), (1e-4, 2e-4, 5e-4)),
        Line("ensemble", (100,), (0.02, 0.05, 0.1)),
        Line("federated_dropout", (50,), (0.05, 0.1, 0.2)),
        Line("fedrolex", (50,), (0.05, 0.1, 0.2)),
        Line("heterofl", (20,), (0.02, 0.05, 0.1)),
        Line("single", (80,), WIDE),
    ),
    "depends-xc": (
        Line("ist", (25, 100), (0.002, 0.005, 0.01)),
        Line("ist", (25,), (0.002, 0.005, 0.01), {"partition.reshuffle": 1.0}),
        Line("narrow", (25, 100), (0.002, 0.005, 0.01)),
        Line("local_sgd", (25, 100), (0.001, 0.002, 0.005)),
        Line("local_sgd", (25,), (0.001, 0.002, 0.005), {"optimizer_state": "stay"}),
        Line("diloco", (25, 100), (0.001, 0.002, 0.005)),
        Line("ensemble", (100,), (0.002, 0.005, 0.01)),
        Line("single", (100,), (0.001, 0.002, 0.005)),
    ),
}


@dataclass(frozen=True)
class Run:
    """One run: its folder, and what to add to ``skerry train RECIPE --out FOLDER``."""

    folder: Path
    settings: Settings

    def go(self, recipe: str) -> float | None:
        """Train unless it is done; return the final value of the recipe's metric, None if it failed."""
        if not (self.folder / "summary.json").exists():
            begun = (self.folder / "config.json").exists()
            words = [w for key, value in self.settings.items() for w in ("--set", f"{key}={json.dumps(value)}")]
            more = ["--resume"] if begun else ["--method", self.settings["method"], *words[2:]]
            command = [sys.executable, "-m", "skerry", "train", recipe, "--out", str(self.folder), *more]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{self.folder.name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                return None
        run = load_run(self.folder)
        metric = main_metric([run])
        last = run.metrics[-1]
        value = last["accuracy"] if metric == "accuracy" else last["metrics"][metric]
        print(f"{self.folder.name}: {metric} {value:.4f}, {last['bytes_due'] / 1e6:.1f} MB", flush=True)
        return float(value)


def plan(recipe: str, line: Line, local_steps: int, budget: float, hidden: int | None) -> tuple[str, Settings]:
    """Return the name of a row and its settings but for rate and seed: the steps of the recipe, times budget."""
    built = RECIPES[recipe]()
    usual = {"rounds": built.config.rounds, "local_steps": built.config.local_steps, **built.methods[line.method]}
    rounds = max(1, round(budget * usual["rounds"] * usual["local_steps"] / local_steps))
    settings = {"method": line.method, "local_steps": local_steps, "rounds": rounds, "eval_every": 0, "threads": 1}
    settings |= {"model.hidden": hidden} if hidden else {}
    name = "-".join([line.method, str(local_steps), *(f"{k.split('.')[-1]}{v}" for k, v in line.settings.items())])
    return name, settings | dict(line.settings)


def frontier(recipe: str, options: argparse.Namespace) -> None:
    """Run what is not done yet."""
    changed = [str(options.hidden)] if options.hidden else []
    changed += [f"budget{options.budget:g}"] if options.budget != 1 else []
    out = options.out / "-".join([recipe, *changed])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "command.txt").open("a") as commands:
        commands.write(f"SKERRY_DATA=... python bench/frontier.py {' '.join(sys.argv[1:])}\n")
    only = [m for m in options.methods.split(",") if m]
    rows = [
        (plan(recipe, line, steps, options.budget, options.hidden), line.rates)
        for line in GRIDS[recipe]
        if not only or line.method in only
        for steps in line.local_steps
    ]
    runs = {
        (name, rate, seed): Run(out / f"{name}-lr{rate:g}-seed{seed}", {**settings, RATE: rate, "seed": seed})
        for (name, settings), rates in rows
        for rate in rates
        for seed in range(options.seeds)
    }

    def all_of(keys: Iterable[tuple[str, float, int]]) -> dict[tuple[str, float, int], float | None]:
        keys = list(keys)
        with ThreadPoolExecutor(options.at_once) as pool:
            return dict(zip(keys, pool.map(lambda key: runs[key].go(recipe), keys), strict=True))

    first = all_of(key for key in runs if key[2] == 0)
    good = {(name, rate): value for (name, rate, _), value in first.items() if value is not None}
    best = {
        name: max((rate for rate in rates if (name, rate) in good), key=lambda rate: good[name, rate])
        for (name, _), rates in rows
        if any((name, rate) in good for rate in rates)
    }
    more = all_of((name, rate, seed) for name, rate in best.items() for seed in range(1, options.seeds))
    if failed := [key for key, value in {**first, **more}.items() if value is None]:
        raise SystemExit(f"{len(failed)} runs failed: {failed}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=GRIDS)
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, help="hidden units of a layer, if not the recipe's")
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    options = parser.parse_args()
    frontier(options.recipe, options)


if __name__ == "__main__":
    main()
