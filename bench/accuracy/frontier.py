"""Accuracy against bytes at equal operations a worker: methods at several numbers of local steps, best of their rates.

    SKERRY_DATA=... python bench/frontier.py fashion-mlp          # runs that are done are kept
    skerry results runs/results --out docs/results.md

For each method and number of local steps the rates are tried with seed 0; the best (by the recipe's first metric, on
the test set) is run with the other seeds. Recipes without a grid of their own get one around their settings. Two runs
at a time, one thread each: two processor cores. ``--budget`` is the part of the recipe's operations that every run
gets: fewer rounds for all methods alike. With ``--edges`` a best rate that is the highest or lowest of those tried is
followed by one beyond it, until it is not.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from skerry.experiments.cli import call
from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import load_run
from skerry.experiments.reports.results_page import RATE, main_metric
from skerry.experiments.runs.execute import configure, run
from skerry.runtimes.serial import Serial

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A method with the numbers of local steps to try, and its rates; ``more``: the best rate with all seeds."""

    method: str
    local_steps: tuple[int, ...]
    rates: tuple[float, ...]
    settings: Settings = field(default_factory=dict)
    more: bool = True


TENTH: dict[str, Any] = {"partition.reshuffle": 0.1}
STAY: Settings = {"optimizer_state": "stay"}
TRAVEL: Settings = {"optimizer_state": "travel"}
UNADJUSTED: dict[str, Any] = {"prior_adjusted": False}
# Rates around those that were best in longer sweeps (docs/log.md); one rate where such a sweep had this very line.
GRIDS: dict[str, tuple[Line, ...]] = {
    "fashion-mlp": (
        Line("relay", (250, 725, 1812), (0.1, 0.2)),
        Line("narrow", (50,), (0.05,)),
        Line("narrow", (250, 725), (0.05, 0.1)),
        Line("narrow", (50, 250), (0.02, 0.05), STAY),
        Line("local_sgd", (20,), (0.05,)),
        Line("local_sgd", (115, 230), (0.02,)),
        Line("diloco", (20,), (0.001,)),
        Line("diloco", (115,), (5e-4, 0.001)),
        Line("ensemble", (725,), (0.1,)),
        Line("ist", (50,), (0.2,), TENTH, more=False),
        Line("ist", (50,), (0.2,), more=False),
        Line("federated_dropout", (50,), (0.2,), more=False),
        Line("fedrolex", (50,), (0.1,), more=False),
        Line("heterofl", (50,), (0.1,), more=False),
        Line("single", (115,), (0.02,), more=False),
        Line("ddp", (115,), (0.05,), more=False),
    ),
    "speech-mlp3": (
        Line("relay", (20, 50, 100), (0.05, 0.1, 0.2)),
        Line("ist", (50,), (0.05, 0.1, 0.2)),
        Line("narrow", (20, 50, 100), (0.05, 0.1, 0.2)),
        Line("narrow", (20, 50), (0.05, 0.1, 0.2), STAY),
        Line("local_sgd", (20, 40), (0.01, 0.02, 0.05)),
        Line("local_sgd", (20,), (0.02, 0.05), STAY),
        Line("diloco", (10, 20), (1e-4, 2e-4, 5e-4)),
        Line("ensemble", (100,), (0.05, 0.1)),
        Line("federated_dropout", (50,), (0.1,), more=False),
        Line("fedrolex", (50,), (0.1,), more=False),
        Line("heterofl", (20,), (0.05,), more=False),
        Line("single", (80,), (0.02,), more=False),
        Line("ddp", (80,), (0.02,), more=False),
    ),
    "depends-xc": (
        Line("relay", (125, 312), (0.05, 0.1)),
        Line("relay", (125,), (0.05, 0.1), TRAVEL),
        Line("narrow", (125,), (0.05, 0.1)),
        Line("narrow", (25, 125, 312), (0.02, 0.05, 0.1), STAY),
        Line("local_sgd", (50, 150), (0.02, 0.05), STAY),
        Line("diloco", (50,), (0.01, 0.02)),
        Line("ensemble", (312,), (0.05, 0.1)),
    ),
    "speech-mlp2": (
        Line("relay", (20, 50, 100), (0.05, 0.1, 0.2)),
        Line("narrow", (20, 50, 100), (0.05, 0.1, 0.2)),
        Line("local_sgd", (20, 40), (0.01, 0.02, 0.05)),
        Line("ensemble", (100,), (0.05, 0.1)),
    ),
    "resnet18-cifar": (
        Line("ist", (50, 150), (0.1, 0.2)),
        Line("narrow", (50, 150), (0.1, 0.2)),
        Line("local_sgd", (20,), (0.05, 0.1)),
        Line("diloco", (20,), (0.0005, 0.001)),
    ),
    "vgg-cifar": (
        Line("relay", (36, 72), (0.1, 0.2)),
        Line("narrow", (24, 72), (0.1, 0.2)),
        Line("local_sgd", (10,), (0.05, 0.1)),
        Line("ensemble", (72,), (0.1, 0.2)),
    ),
    "resist-cifar": (
        Line("resist", (20, 40), (0.05, 0.1)),
        Line("narrow", (20, 40), (0.05, 0.1)),
        Line("local_sgd", (20,), (0.05, 0.1)),
    ),
    "skewed-mlp": (
        Line("relay", (52, 242), (0.05, 0.1)),
        Line("ist", (20,), (0.1,), TENTH),
        Line("ist", (20,), (0.1,), TENTH | UNADJUSTED),
        Line("narrow", (52, 242), (0.05, 0.1)),
        Line("narrow", (52, 242), (0.05, 0.1), UNADJUSTED),
        Line("local_sgd", (20, 46), (0.02, 0.05)),
        Line("local_sgd", (20, 46), (0.02, 0.05), UNADJUSTED),
        Line("diloco", (20,), (0.001,)),
        Line("ensemble", (242,), (0.1,)),
    ),
    "skewed-resnet": (
        Line("ist", (50,), (0.1,)),
        Line("narrow", (50,), (0.1,)),
        Line("local_sgd", (20,), (0.05,)),
    ),
}


def grid(recipe: str) -> tuple[Line, ...]:
    """Return the lines of a recipe; one without a grid of its own: around what the recipe has.

    The methods that people would choose between get their own number of local steps and four times as many.
    """
    if recipe in GRIDS:
        return GRIDS[recipe]
    built = RECIPES[recipe]()
    lines = []
    for method, own in built.methods.items():
        steps = own.get("local_steps", built.config.local_steps)
        optimizer = built.config.change(dict(own)).optimizer
        rounds = own.get("rounds", built.config.rounds)
        often = method in ("ist", "relay", "resist", "narrow", "local_sgd", "diloco")
        rates = tuple(optimizer["lr"] * factor for factor in (0.5, 1.0, 2.0))
        longer = min(4 * steps, rounds * steps // 2)
        lines.append(Line(method, (steps, longer) if often else (steps,), rates))
    return tuple(lines)


@dataclass(frozen=True)
class Run:
    """One run: its folder, and what to add to ``skerry train RECIPE --out FOLDER``."""

    folder: Path
    settings: Settings

    def go(self, recipe: str) -> float | None:
        """Train unless it is done; return the final value of the recipe's metric, None if it failed."""
        name = f"{self.folder.parent.name}/{self.folder.name}"
        if not (self.folder / "summary.json").exists():
            begun = (self.folder / "config.json").exists()
            words = [w for key, value in self.settings.items() for w in ("--set", f"{key}={json.dumps(value)}")]
            more = ["--resume"] if begun else ["--method", self.settings["method"], *words[2:]]
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                code, told = call(["train", recipe, "--out", str(self.folder), *more])
            if code:
                print(f"{name}: {told}", flush=True)
                return None
        done = load_run(self.folder)
        metric = main_metric([done])
        last = done.metrics[-1]
        value = last["accuracy"] if metric == "accuracy" else last["metrics"][metric]
        print(f"{name}: {metric} {value:.4f}, {last['bytes_due'] / 1e6:.1f} MB", flush=True)
        return float(value)


@functools.cache
def flop_a_step(recipe: str, method: str, workers: int, hidden: int | None) -> float:
    """What a step costs, the mean over workers."""
    method = "local_sgd" if method == "ddp" else method  # the same step, without processes
    settings: dict[str, Any] = {"rounds": 1, "local_steps": 1, "eval_every": 0}
    settings |= {"workers": workers} if method != "single" else {}
    settings |= {"model.hidden": hidden} if hidden else {}
    with tempfile.TemporaryDirectory() as folder:
        run(configure(recipe, method, settings), Path(folder) / "run", Serial(), resume=False)
        return float(load_run(Path(folder) / "run").metrics[-1]["flop"])


def plan(recipe: str, line: Line, local_steps: int, options: argparse.Namespace) -> tuple[str, Settings]:
    """Return the name of a row and its settings but for rate and seed.

    Operations: the recipe's, times budget; with another number of workers, those of its own method (``ist``) with as
    many. The number of local steps is the nearest that gives them.
    """
    built = RECIPES[recipe]()

    def steps_of(method: str) -> int:
        settings = built.config.change(dict(built.methods[method]))
        return settings.rounds * settings.local_steps

    steps: float = steps_of(line.method)
    settings: dict[str, Any] = {"method": line.method, "eval_every": 0, "threads": 1}
    if options.workers:
        cost = [flop_a_step(recipe, m, options.workers, options.hidden) for m in (built.config.method, line.method)]
        steps = steps_of(built.config.method) * cost[0] / cost[1]
        settings |= {"workers": options.workers} if line.method != "single" else {}
    least = (options.workers or built.config.workers) if line.method == "relay" else 1
    rounds = max(least, round(options.budget * steps / local_steps))
    # So many steps a round that the sum is met, whatever rounding did.
    settings |= {"rounds": rounds, "local_steps": max(1, round(options.budget * steps / rounds))}
    settings |= {"model.hidden": options.hidden} if options.hidden else {}
    name = "-".join([line.method, str(local_steps), *(f"{k.split('.')[-1]}{v}" for k, v in line.settings.items())])
    return name, settings | dict(line.settings)


def frontier(recipe: str, options: argparse.Namespace) -> None:
    """Run what is not done yet."""
    changed = [str(options.hidden)] if options.hidden else []
    changed += [f"{options.workers}workers"] if options.workers else []
    changed += [f"budget{options.budget:g}"] if options.budget != 1 else []
    out = options.out / "-".join([recipe, *changed])
    out.mkdir(parents=True, exist_ok=True)
    commands = out / "command.txt"
    made_by = commands.read_text().splitlines() if commands.exists() else []
    this = f"SKERRY_DATA=... python bench/frontier.py {' '.join(sys.argv[1:])}"
    commands.write_text("\n".join(dict.fromkeys([*made_by, this])) + "\n")
    only = [m for m in options.methods.split(",") if m]
    rows = [
        (plan(recipe, line, steps, options), line.rates, options.seeds if line.more else 1)
        for line in grid(recipe)
        if not only or line.method in only
        for steps in line.local_steps
    ]
    settings_of = {name: settings for (name, settings), *_ in rows}
    found: dict[Key, float | None] = {}

    def run_of(name: str, rate: float, seed: int) -> Run:
        return Run(out / f"{name}-lr{rate:g}-seed{seed}", {**settings_of[name], RATE: rate, "seed": seed})

    with ProcessPoolExecutor(options.at_once, mp_context=get_context("spawn")) as pool:

        def all_of(keys: Iterable[Key]) -> dict[Key, float | None]:
            keys = list(keys)
            waiting = {key: pool.submit(run_of(*key).go, recipe) for key in keys if key not in found}
            found.update({key: future.result() for key, future in waiting.items()})
            return {key: found[key] for key in keys}

        while options.edges:
            run_all([(row, rates, 1) for row, rates, _ in rows], all_of)
            more = [(row, wider({r: found[row[0], r, 0] for r in rates}), seeds) for row, rates, seeds in rows]
            if all(len(new[1]) == len(old[1]) for new, old in zip(more, rows, strict=True)):
                break
            rows = more
        failed = run_all(rows, all_of)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {failed}")


Key = tuple[str, float, int]


def run_all(
    rows: Sequence[tuple[tuple[str, Settings], tuple[float, ...], int]],
    all_of: Callable[[Iterable[Key]], Mapping[Key, float | None]],
) -> list[Key]:
    """Run every row at every rate with seed 0, its best rate with the row's other seeds; return what failed."""
    first = all_of((name, rate, 0) for (name, _), rates, _ in rows for rate in rates)
    good = {(name, rate): value for (name, rate, _), value in first.items() if value is not None}
    best = {
        name: max((rate for rate in rates if (name, rate) in good), key=lambda rate: good[name, rate])
        for (name, _), rates, _ in rows
        if any((name, rate) in good for rate in rates)
    }
    more = all_of((name, best[name], s) for (name, _), _, seeds in rows if name in best for s in range(1, seeds))
    return [key for key, value in {**first, **more}.items() if value is None]


def wider(values: Mapping[float, float | None]) -> tuple[float, ...]:
    """Return the rates of ``values``, and one more where the best is at an edge and better than all others."""
    known = {rate: -math.inf if value is None else value for rate, value in sorted(values.items())}
    rates, best = tuple(known), max(known, key=lambda rate: known[rate])
    if list(known.values()).count(known[best]) > 1:
        return rates
    beyond = {rates[0]: (rates[0] / 2,), rates[-1]: (rates[-1] * 2,)}
    return (*rates, *beyond.get(best, ()))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, help="hidden units of a layer, if not the recipe's")
    parser.add_argument("--workers", type=int, help="if not the recipe's")
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--edges", action="store_true", help="go on past rates that were the best at an edge")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    options = parser.parse_args()
    frontier(options.recipe, options)


if __name__ == "__main__":
    main()
