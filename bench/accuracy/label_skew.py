"""What wins at which label skew: eight sites, a quarter of the memory, and the wide net as well; all tuned alike.

    SKERRY_DATA=... python bench/accuracy/label_skew.py --seeds 2          # finished runs are kept; prints the table
    python bench/accuracy/label_skew.py --page                             # the table alone, from the finished runs

A perceptron 784-128-128-10 on 24,000 images of Fashion-MNIST, without norms: a batch norm's statistics need data at the
server. Every site takes as many local steps on batches of the same size. A site holds 32 units of each hidden layer, a
quarter; in HeteroFL a quarter on average, and one site holds all; in the rows called wide all sites do. Where subnets
share nothing, the eight of them make a net of 256 units.

Each row is tuned by itself for each split: learning rates are doubled or halved until the best is inside, with seed 0,
by the accuracy on 5,000 training images that no site has. The test set is looked at for the table only. Each finished
run is a line of results.jsonl.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rate_search import Rates, best_rate, wider
from torch import Tensor
from torch.nn import functional as F

import skerry
from skerry.algorithm import Algorithm
from skerry.algorithms import ensemble, fedrolex, heterofl, ist, local_sgd, narrow, relay
from skerry.experiments.datasets.loading import load
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.plan.table import Plan
from skerry.randomness import generator, own_random_state, seed_of
from skerry.training import TheoryWarning, TrainingFailed, log_priors
from skerry.training.evaluation.evaluate import evaluate
from skerry.training.steps.schedules import cosine

SITES, WIDE, OWN = 8, 128, 32
STEPS, BATCH, NUM_TRAIN, HELD_OUT = 320, 64, 24_000, 5000
RATES: Rates = (0.05, 0.1)
SPLITS = {"Dirichlet(1)": "dirichlet:1", "Dirichlet(.3)": "dirichlet:0.3", "Dirichlet(.1)": "dirichlet:0.1"}
SPLITS |= {"by label": "by_label"}
LEVELS = (1, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 16, 1 / 16)
"""HeteroFL's sites: one has the whole net; the mean is a quarter."""
SHARES = (OWN / WIDE,) * SITES
CORE = (OWN / WIDE - 1 / SITES) / (1 - 1 / SITES)
"""With it a site's part of ``ist`` is a quarter of the wide net: core + (1 - core) / sites."""


@dataclass(frozen=True)
class Row:
    """A method with its settings.

    Attributes:
        make: returns the algorithm, given ``local_steps``.
        local_steps: per round.
        priors: whether sites train with label priors.
        hidden: units in each hidden layer of the net that is dealt out.
    """

    make: Callable[..., Algorithm]
    local_steps: int = 20
    priors: bool = False
    hidden: int = WIDE


def _both(name: str, row: Row) -> dict[str, Row]:
    return {name: row, f"{name}, priors": Row(row.make, row.local_steps, True, row.hidden)}


_narrow = partial(narrow, SITES, width=OWN / WIDE)
_relay, _ist, _apart = partial(relay, SITES), partial(ist, SITES), SITES * OWN
MAIN: Mapping[str, Row] = {
    **_both("wide FedAvg", Row(partial(local_sgd, SITES))),
    **_both("narrow FedAvg", Row(_narrow)),
    **_both("relay, 20 steps", Row(_relay, hidden=_apart)),
    **_both("ist", Row(_ist, hidden=_apart)),
    **_both("ensemble", Row(partial(ensemble, SITES), hidden=_apart)),
    "heterofl": Row(partial(heterofl, SITES, fractions=LEVELS)),
    "fedrolex, step 16": Row(partial(fedrolex, SITES, fractions=SHARES, step=16)),
    "narrow FedProx, mu .1": Row(partial(_narrow, proximal=0.1)),
}
MORE: Mapping[str, Row] = {
    **_both("relay, 5 steps", Row(_relay, 5, hidden=_apart)),
    **_both("relay, 40 steps", Row(_relay, 40, hidden=_apart)),
    **_both("ist, core", Row(partial(_ist, core=CORE))),
    "heterofl, priors": Row(partial(heterofl, SITES, fractions=LEVELS), priors=True),
    "fedrolex, step 1": Row(partial(fedrolex, SITES, fractions=SHARES, step=1)),
    "fedrolex, step 64": Row(partial(fedrolex, SITES, fractions=SHARES, step=64)),
    "fedrolex, step 16, priors": Row(partial(fedrolex, SITES, fractions=SHARES, step=16), priors=True),
    "narrow FedProx, mu .01": Row(partial(_narrow, proximal=0.01)),
    "narrow FedProx, mu 1": Row(partial(_narrow, proximal=1.0)),
    "wide FedProx, mu .1": Row(partial(narrow, SITES, width=1.0, proximal=0.1)),
    **_both("wide FedAvg, 5 steps", Row(partial(local_sgd, SITES), 5)),
    **_both("narrow FedAvg, 5 steps", Row(_narrow, 5)),
}
ROWS: Mapping[str, Row] = {**MAIN, **MORE}

Key = tuple[str, str, float, int]
"""The name of a split, the name of a row, the learning rate, the seed."""
Samples = tuple[Tensor, Tensor]


@cache
def samples() -> tuple[Samples, Samples, Samples]:
    """Return the images and labels that sites have, those of validation, and the test set."""
    images = load("fashion-mnist")

    def scaled(x: Any) -> Tensor:
        return ((torch.from_numpy(x).float() / 255 - images.mean) / images.std).flatten(1)

    x, y = scaled(images.x_train), torch.from_numpy(images.y_train).long()
    order = torch.randperm(len(x), generator=generator("validation"))
    held, own = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + NUM_TRAIN]
    return (x[own], y[own]), (x[held], y[held]), (scaled(images.x_test), torch.from_numpy(images.y_test).long())


def run(key: Key) -> dict[str, Any]:
    """Train; return the accuracies, MB that a site sends, and the parameters of the largest subnet."""
    split, name, rate, seed = key
    row = ROWS[name]
    (x, y), validation, test = samples()
    parts = skerry.split(y, SITES, SPLITS[split], seed=seed)
    with own_random_state(seed_of(seed, "model")):
        model = MLP([x.shape[1], row.hidden, row.hidden, 10], norm=False)
    began = time.process_time()
    try:
        result = skerry.train(
            model,
            F.cross_entropy,
            skerry.Shards(x, y, parts, batch_size=BATCH, seed=seed),
            plan=Plan.from_rules(model, mlp_rules(2, norm=False)),
            algorithm=row.make(local_steps=row.local_steps),
            optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9),
            num_rounds=STEPS // row.local_steps,
            schedule=cosine,
            logit_adjustment=log_priors(y, parts, 10) if row.priors else None,
            seed=seed,
        )
    except TrainingFailed:
        return {"valid": None, "test": None}
    found = {k: evaluate(result.model, F.cross_entropy, s).accuracy for k, s in (("valid", validation), ("test", test))}
    found |= {"megabytes": result.state.totals["bytes_due"] / 1e6, "parameters": result.step_cost.parameters}
    return found | {"full_parameters": result.num_parameters, "cpu_s": round(time.process_time() - began, 1)}


class Runs:
    """The runs that are finished, in a file; others are trained when they are asked for."""

    def __init__(self, path: Path, *, trains: bool) -> None:
        self._path, self._trains = path, trains
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.done: dict[Key, dict[str, Any]] = {tuple(line.pop("key")): line for line in map(json.loads, lines)}

    def of(self, key: Key) -> dict[str, Any] | None:
        """Return a run; None if it is not there and none is to be trained."""
        if key not in self.done and self._trains:
            found = run(key)
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, **found}) + "\n")
            print(key, found, flush=True)
            self.done[key] = found
        return self.done.get(key)

    def best(self, split: str, name: str) -> tuple[float, bool] | None:
        """Return the rate that is best on the validation part, and whether it lies inside of those tried."""
        there = tuple(r for s, n, r, seed in self.done if (s, n, seed) == (split, name, 0))
        rates: Rates = tuple(sorted({*RATES, *there})) if self._trains else there
        while True:
            found = {rate: self.of((split, name, rate, 0)) for rate in rates}
            values = {rate: each["valid"] for rate, each in found.items() if each is not None}
            more = wider(values) if values else ()
            if not self._trains or len(more) == len(rates):
                rate = best_rate(values)
                return None if rate is None else (rate, min(values) < rate < max(values))
            rates = more


@dataclass(frozen=True)
class Cell:
    """What a row reached at a split: test accuracies by seed, validation accuracy of seed 0, rate."""

    accuracies: Sequence[float]
    valid: float
    rate: float
    inside: bool
    first: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """The mean test accuracy."""
        return statistics.fmean(self.accuracies)

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.accuracies):.3f}" if len(self.accuracies) > 1 else ""
        return f"{self.mean:.3f}{spread} ({'' if self.inside else 'edge '}{self.rate:g})"


def cell(runs: Runs, split: str, name: str, seeds: int) -> Cell | None:
    """Return what a row reached at a split; None if it has no runs."""
    best = runs.best(split, name)
    if best is None:
        return None
    rate, inside = best
    found = [each for seed in range(seeds) if (each := runs.of((split, name, rate, seed))) and each["test"] is not None]
    return Cell([each["test"] for each in found], found[0]["valid"], rate, inside, found[0])


def table(runs: Runs, seeds: int) -> str:
    """Return the Markdown table; bold is the best of a column without the wide rows."""
    rows = {name: {split: cell(runs, split, name, seeds) for split in SPLITS} for name in ROWS}
    rows = {name: cells for name, cells in rows.items() if any(cells.values())}
    best = {
        split: max((c.mean for name, own in rows.items() if "wide" not in name and (c := own[split])), default=0.0)
        for split in SPLITS
    }
    columns = ["a site's parameters", "MB sent between peers", *SPLITS]
    lines = [["method", *columns], ["---", *["---:"] * len(columns)]]
    for name, cells in rows.items():
        first = next(c for c in cells.values() if c).first
        shown = [
            "-" if c is None else f"**{c}**" if c.mean == best[split] and "wide" not in name else str(c)
            for split, c in cells.items()
        ]
        lines.append([name, f"{first['parameters']:,}", f"{first['megabytes']:.1f}", *shown])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/label-skew"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--main", action="store_true", help="only the main rows")
    parser.add_argument("--only", nargs="+", choices=ROWS, help="only these rows")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="only these splits")
    parser.add_argument("--page", action="store_true", help="only the table, no training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TheoryWarning)  # label skew is the subject
    runs = Runs(options.out / "results.jsonl", trains=not options.page)
    if not options.page:
        for name in options.only or (MAIN if options.main else ROWS):
            for split in options.splits:
                cell(runs, split, name, options.seeds)
    print(table(Runs(options.out / "results.jsonl", trains=False), options.seeds))


if __name__ == "__main__":
    main()
