"""What a limit on exposure costs: relays of eight nets on scikit-learn's digits, from a whole relay to an ensemble.

    python bench/accuracy/exposure.py          # a minute on an idle core; finished runs are kept

Each worker of eight sees all nets, a half, a quarter, or only its own. Rates are tried with seed 0, and the best one by
final accuracy on the test set is run with the other seeds. iid data, and label skew (Dirichlet .3) with label priors.
"""

import argparse
import statistics
from pathlib import Path

from rate_search import Run, best_rate

RATES = (0.05, 0.1, 0.2)
SPLITS = {"iid": {"split": "iid"}, "label skew": {"split": "dirichlet:0.3", "prior_adjusted": True}}
BOUNDS = (1.0, 0.5, 0.25, 0.125)
EVERY = {
    "method": "relay",
    "workers": 8,
    "rounds": 32,
    "local_steps": 10,
    "eval_every": 0,
    "threads": 1,
    "batch_size": 16,
}


def value(out: Path, split: str, bound: float, rate: float, seed: int) -> float:
    """Return the accuracy of a run, -1 if it failed."""
    settings = EVERY | SPLITS[split] | {"partition.max_exposure": bound, "optimizer.lr": rate, "seed": seed}
    found = Run("digits-mlp", out / f"{split.replace(' ', '-')}-{bound:g}-{rate:g}-{seed}", settings).value()
    return -1.0 if found is None else found


def main() -> None:
    """Train what is missing, and print a row per split and bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/exposure"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    args = parser.parse_args()
    lines = ["| data | a worker sees | accuracy | rate |", "|---|---:|---:|---:|"]
    for split in args.splits:
        for bound in BOUNDS:
            rate = best_rate({rate: value(args.out, split, bound, rate, 0) for rate in args.rates})
            assert rate is not None
            found = [value(args.out, split, bound, rate, seed) for seed in range(args.seeds)]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            lines.append(f"| {split} | {bound:.1%} | {statistics.fmean(found):.4f} ± {spread:.4f} | {rate:g} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
