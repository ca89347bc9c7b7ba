"""Accuracy against bytes at equal operations per worker: several methods and numbers of local steps.

    SKERRY_DATA=... python bench/accuracy/frontier.py fashion-mlp          # finished runs are kept
    skerry results runs/results --out docs/results.md

For each method and number of local steps, each learning rate is tried with seed 0. The best one, by the recipe's first
metric on the test set, is run with the other seeds. Recipes without a grid of their own get one around their settings.
Two runs at a time, one thread each, for two processor cores.

``--budget`` is the fraction of the recipe's operations that every run gets: fewer rounds for all methods alike. With
``--edges``, where the best rate is the highest or lowest of those tried, one beyond it is tried as well, until the best
is no longer at an edge.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rate_search import Rates, Run, Settings, search

from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import load_run
from skerry.experiments.reports.results_page import RATE
from skerry.experiments.runs.execute import configure, run
from skerry.runtimes import Serial


@dataclass(frozen=True)
class Line:
    """A method, its numbers of local steps, the rates to try; ``more``: run the best rate with all seeds."""

    method: str
    local_steps: tuple[int, ...]
    rates: Rates
    settings: Settings = field(default_factory=dict)
    more: bool = True


TENTH: dict[str, Any] = {"partition.reshuffle": 0.1}
STAY: Settings = {"optimizer_state": "stay"}
TRAVEL: Settings = {"optimizer_state": "travel"}
UNADJUSTED: dict[str, Any] = {"prior_adjusted": False}
# Rates around those that were best in longer sweeps (docs/log.md), or that one rate where a sweep had the same line.
GRIDS: Mapping[str, tuple[Line, ...]] = {
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
    """Return the lines of a recipe, made from its settings where it has no grid of its own.

    The main methods get their own number of local steps and four times as many.
    """
    if recipe in GRIDS:
        return GRIDS[recipe]
    built = RECIPES[recipe]()
    lines = []
    for method, own in built.methods.items():
        steps = own.get("local_steps", built.config.local_steps)
        optimizer = built.config.change(dict(own)).optimizer
        rounds = own.get("rounds", built.config.rounds)
        main = method in ("ist", "relay", "resist", "narrow", "local_sgd", "diloco")
        rates = tuple(optimizer["lr"] * factor for factor in (0.5, 1.0, 2.0))
        longer = min(4 * steps, rounds * steps // 2)
        lines.append(Line(method, (steps, longer) if main else (steps,), rates))
    return tuple(lines)


@functools.cache
def flop_per_step(recipe: str, method: str, workers: int, hidden: int | None) -> float:
    """Return the operations of a local step, the mean over workers."""
    method = "local_sgd" if method == "ddp" else method  # the same step, without processes
    settings: dict[str, Any] = {"rounds": 1, "local_steps": 1, "eval_every": 0}
    settings |= {"workers": workers} if method != "single" else {}
    settings |= {"model.hidden": hidden} if hidden else {}
    with tempfile.TemporaryDirectory() as folder:
        run(configure(recipe, method, settings), Path(folder) / "run", Serial(), resume=False)
        return float(load_run(Path(folder) / "run").metrics[-1]["flop"])


def row_settings(recipe: str, line: Line, local_steps: int, options: argparse.Namespace) -> tuple[str, Settings]:
    """Return the name of a row and its settings, without learning rate and seed.

    A run gets the operations of the recipe times the budget. With another number of workers it gets those that the
    recipe's own method needs with that many. The number of rounds is the nearest that gives them.
    """
    built = RECIPES[recipe]()

    def steps_of(method: str) -> int:
        settings = built.config.change(dict(built.methods[method]))
        return settings.rounds * settings.local_steps

    steps: float = steps_of(line.method)
    settings: dict[str, Any] = {"method": line.method, "eval_every": 0, "threads": 1}
    if options.workers:
        cost = [flop_per_step(recipe, m, options.workers, options.hidden) for m in (built.config.method, line.method)]
        steps = steps_of(built.config.method) * cost[0] / cost[1]
        settings |= {"workers": options.workers} if line.method != "single" else {}
    least = (options.workers or built.config.workers) if line.method == "relay" else 1
    rounds = max(least, round(options.budget * steps / local_steps))
    # Rounds are whole, so the local steps per round are adjusted to meet the total.
    settings |= {"rounds": rounds, "local_steps": max(1, round(options.budget * steps / rounds))}
    settings |= {"model.hidden": options.hidden} if options.hidden else {}
    name = "-".join([line.method, str(local_steps), *(f"{k.split('.')[-1]}{v}" for k, v in line.settings.items())])
    return name, settings | dict(line.settings)


def frontier(recipe: str, options: argparse.Namespace) -> None:
    """Run everything that is not finished yet, and note the command beside the runs."""
    changed = [str(options.hidden)] if options.hidden else []
    changed += [f"{options.workers}workers"] if options.workers else []
    changed += [f"budget{options.budget:g}"] if options.budget != 1 else []
    out = options.out / "-".join([recipe, *changed])
    out.mkdir(parents=True, exist_ok=True)
    commands = out / "command.txt"
    made_by = commands.read_text().splitlines() if commands.exists() else []
    this = f"SKERRY_DATA=... python bench/accuracy/frontier.py {' '.join(sys.argv[1:])}"
    commands.write_text("\n".join(dict.fromkeys([*made_by, this])) + "\n")
    only = [m for m in options.methods.split(",") if m]
    rows, settings_of = dict[str, tuple[Rates, int]](), dict[str, Settings]()
    for line in grid(recipe):
        for steps in line.local_steps if not only or line.method in only else ():
            name, settings = row_settings(recipe, line, steps, options)
            settings_of[name] = settings
            rows[name] = line.rates, options.seeds if line.more else 1

    def run_of(name: str, rate: float, seed: int) -> Run:
        return Run(recipe, out / f"{name}-lr{rate:g}-seed{seed}", {**settings_of[name], RATE: rate, "seed": seed})

    if failed := search(rows, run_of, edges=options.edges, at_once=options.at_once):
        raise SystemExit(f"{len(failed)} runs failed: {failed}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--budget", type=float, default=1.0, help="fraction of the recipe's operations")
    parser.add_argument("--hidden", type=int, help="units per hidden layer; default: the recipe's")
    parser.add_argument("--workers", type=int, help="default: the recipe's")
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--edges", action="store_true", help="try more rates where the best is at an edge")
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    options = parser.parse_args()
    frontier(options.recipe, options)


if __name__ == "__main__":
    main()
