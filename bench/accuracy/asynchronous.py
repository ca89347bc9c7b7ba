"""Who is there first where clients are of different speeds: servers that wait for nobody, and rounds that wait for all.

    SKERRY_DATA=... python bench/accuracy/asynchronous.py                  # finished runs are kept; prints the table
    SKERRY_DATA=... python bench/accuracy/asynchronous.py --report         # the table of what there is

Recipe ``async-fashion``: 8 of 32 clients train at a time, label skew (Dirichlet .3), label priors in the logits. The
clock is simulated. A turn takes as long as its operations at 1 GFLOP/s on the fastest client, and up to five times as
long on others; transfers take no time. All methods have the same simulated time. Rates are tried with seed 0; the table
has for each method the rate with the best final accuracy on the test set. One run at a time, one thread.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rate_search import Run, best_rate

from skerry.experiments.reports.comparison import load_run, markdown_table
from skerry.experiments.runs.execute import configure

RECIPE = "async-fashion"
ROWS: Mapping[str, Mapping[str, Any]] = {
    "asyncdrop": {"method": "asyncdrop"},
    "local_sgd": {"method": "local_sgd"},
    "fedbuff": {"method": "fedbuff"},
    "relay": {"method": "relay"},
    "ist": {"method": "ist"},
    "asyncdrop, heterogeneous": {"method": "asyncdrop", "asynchronous.heterogeneous": True},
    "asyncdrop, drop 0": {"method": "asyncdrop", "asynchronous.drop": 0.0, "rounds": 331},
    "narrow": {"method": "narrow"},
}
"""``local_sgd`` with clients is FedAvg without weights; nothing dropped is asynchronous FedAvg."""
RATES = (0.05, 0.02, 0.1)
MARKS = (0.7, 0.75, 0.8, 0.85)
FLOP_PER_S = 1e9


def run_of(out: Path, name: str, rate: float, budget: float, seed: int) -> Run:
    """Return the run of a row, for the fraction ``budget`` of its rounds."""
    row = ROWS[name]
    config = configure(RECIPE, row["method"], {k: v for k, v in row.items() if k != "method"})
    rounds = max(1, round(budget * config.rounds))
    own = {"rounds": rounds, "eval_every": max(1, rounds // 12), "optimizer.lr": rate, "seed": seed, "threads": 1}
    folder = out / f"{name.replace(', ', '-').replace(' ', '')}-{rate:g}-{seed}"
    return Run(RECIPE, folder, row | own | {"runtime": "serial"})


def curve(folder: Path) -> list[tuple[float, float]]:
    """Return (simulated seconds, accuracy) of each evaluation."""
    lines = load_run(folder).metrics
    per_turn = lines[-1]["flop"] / len(lines) / FLOP_PER_S
    return [(line["clock"] * per_turn, line["accuracy"]) for line in lines if line["accuracy"] is not None]


def report(out: Path, rates: tuple[float, ...], budget: float, seed: int) -> None:
    """Print a row per method: time to each mark, and where it ended."""
    lines = []
    for name in ROWS:
        folders = {rate: run_of(out, name, rate, budget, seed).folder for rate in rates}
        done = {rate: curve(folder) for rate, folder in folders.items() if (folder / "summary.json").exists()}
        best = best_rate({rate: points[-1][1] for rate, points in done.items()})
        if best is None:
            continue
        points = done[best]
        first = [next((f"{at:.1f}" for at, accuracy in points if accuracy >= mark), "-") for mark in MARKS]
        cells = [f"{best:g}", *first, f"{points[-1][0]:.1f}", f"{points[-1][1]:.4f}"]
        lines.append([name, *cells, ", ".join(f"{rate:g}: {p[-1][1]:.4f}" for rate, p in sorted(done.items()))])
    marks = [f"s to {mark:g}" for mark in MARKS]
    print(
        markdown_table(["method", "rate", *marks, "end, s", "accuracy", "by rate"], lines, left=["method", "by rate"])
    )


def main() -> None:
    """Train what is missing, rate by rate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/async-fashion"))
    parser.add_argument("--report", action="store_true", help="only print the table of the runs that there are")
    parser.add_argument("--budget", type=float, default=1.0, help="fraction of the recipe's rounds")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for rate in () if args.report else args.rates:
        for name in args.rows:
            run_of(args.out, name, rate, args.budget, args.seed).value()
    report(args.out, tuple(args.rates), args.budget, args.seed)


if __name__ == "__main__":
    main()
