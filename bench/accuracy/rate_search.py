"""Train at several learning rates with seed 0, then at the best of them with more seeds. Finished runs are kept."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from skerry.experiments.config import Config
from skerry.experiments.reports.comparison import load_run, rank
from skerry.experiments.reports.results_page import main_metric
from skerry.experiments.runs import execute
from skerry.experiments.runs.folder import saved_config
from skerry.runtimes import PeerLost, Runtime, Serial, WorkerDied, launch
from skerry.training import TheoryWarning, TrainingFailed

Settings = Mapping[str, Any]
Rates = tuple[float, ...]
Key = tuple[str, float, int]
"""The name of a row, a learning rate, a seed."""

FAILURES = (ValueError, OSError, TrainingFailed, PeerLost, WorkerDied)


@dataclass(frozen=True)
class Run:
    """One training run: its recipe, its folder, and the settings that differ from the recipe's, ``method`` included."""

    recipe: str
    folder: Path
    settings: Settings

    def value(self) -> float | None:
        """Train, unless the run is finished; return how good it ended (``rank``), None if training failed."""
        name = f"{self.folder.parent.name}/{self.folder.name}"
        try:
            if not (self.folder / "summary.json").exists():
                self._train()
        except FAILURES as error:
            print(f"{name}: {error}", flush=True)
            return None
        done = load_run(self.folder)
        metric = main_metric([done])
        last = done.metrics[-1]
        value = last["accuracy"] if metric == "accuracy" else last["metrics"][metric]
        print(f"{name}: {metric} {value:.4f}, {last['bytes_due'] / 1e6:.1f} MB", flush=True)
        return rank(value, metric)

    def _train(self) -> None:
        resume = (self.folder / "config.json").exists()
        changes = {name: value for name, value in self.settings.items() if name != "method"}
        config = (
            saved_config(self.folder) if resume else execute.configure(self.recipe, self.settings["method"], changes)
        )
        torch.set_num_threads(config.threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TheoryWarning)  # short runs at bad rates are part of the search
            if config.runtime == "serial":
                train_worker(Serial(), config, self.folder, resume)
            else:
                launch(
                    train_worker, config.workers, config, self.folder, resume,
                    threads=config.threads, timeout_s=config.timeout_s, wire=config.wire, expected=FAILURES,
                )  # fmt: skip


def train_worker(runtime: Runtime, config: Config, folder: Path, resume: bool) -> None:
    """Run one process's part of a training run."""
    execute.run(config, folder, runtime, resume=resume)


def search(
    rows: Mapping[str, tuple[Rates, int]], run_of: Callable[[str, float, int], Run], *, edges: bool, at_once: int
) -> list[Key]:
    """Run each row at each of its rates with seed 0, and at the best rate with the row's other seeds.

    Args:
        rows: for each name, the rates to try and the number of seeds.
        run_of: returns the run of a name, a rate and a seed.
        edges: also try a rate beyond the best one where the best one is the lowest or highest, until it no longer is.
        at_once: the number of runs at a time.

    Returns:
        The runs that failed.
    """
    rates = {name: tried for name, (tried, _) in rows.items()}
    found: dict[Key, float | None] = {}

    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:

        def run(keys: Iterable[Key]) -> None:
            waiting = {key: pool.submit(run_of(*key).value) for key in keys if key not in found}
            print(f"{len(waiting)} runs", flush=True)
            found.update({key: future.result() for key, future in waiting.items()})

        def values(name: str) -> dict[float, float | None]:
            return {rate: found[name, rate, 0] for rate in rates[name]}

        run((name, rate, 0) for name, tried in rates.items() for rate in tried)
        while edges:
            more = {name: wider(values(name)) for name in rates}
            if all(len(more[name]) == len(tried) for name, tried in rates.items()):
                break
            rates = more
            run((name, rate, 0) for name, tried in rates.items() for rate in tried)
        best = {name: best_rate(values(name)) for name in rates}
        run((name, rate, seed) for name, rate in best.items() if rate for seed in range(1, rows[name][1]))
    return [key for key, value in found.items() if value is None]


def best_rate(values: Mapping[float, float | None]) -> float | None:
    """Return the rate with the highest value; None if all runs failed."""
    good = {rate: value for rate, value in values.items() if value is not None}
    return max(good, key=lambda rate: good[rate], default=None)


def wider(values: Mapping[float, float | None]) -> Rates:
    """Return the rates of ``values``, and one more where the best is at an edge and better than all others."""
    known = {rate: -math.inf if value is None else value for rate, value in sorted(values.items())}
    rates, best = tuple(known), max(known, key=lambda rate: known[rate])
    if list(known.values()).count(known[best]) > 1:
        return rates
    beyond = {rates[0]: (rates[0] / 2,), rates[-1]: (rates[-1] * 2,)}
    return (*rates, *beyond.get(best, ()))
