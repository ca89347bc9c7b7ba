"""The headline table: IST against its rivals on Fashion-MNIST at equal operations a worker, three seeds.

    .venv/bin/python bench/fashion.py            # about 20 minutes on two cores; runs that are done are kept
    .venv/bin/skerry report runs/headline --markdown

Every method has its best learning rate at seed 0, of 0.02 to 0.3, and local SGD at 20 steps also its momenta averaged
(docs/log.md has the sweep). One worker's
operations are the same in all rows, about 1.13 TFLOP: 920 steps of the wide net, 7,250 of a quarter of it.
"""

import subprocess
import sys
from pathlib import Path

OUT = Path("runs/headline")
SEEDS = (0, 1, 2)

# label -> what to add to `skerry train fashion-mlp`
ROWS = {
    "ist": [],
    "local_sgd-20": [
        "--method", "local_sgd", "--rounds", "46", "--set", "local_steps=20", "--set", "eval_every=6",
        "--set", "optimizer.lr=0.05",
    ],
    "local_sgd-20-travel": [
        "--method", "local_sgd", "--rounds", "46", "--set", "local_steps=20", "--set", "eval_every=6",
        "--set", "optimizer_state=travel",
    ],
    "local_sgd-115": ["--method", "local_sgd"],
    "local_sgd-230": ["--method", "local_sgd", "--rounds", "4", "--set", "local_steps=230"],
    "narrow-50": ["--method", "narrow"],
    "narrow-518": ["--method", "narrow", "--rounds", "14", "--set", "local_steps=518", "--set", "optimizer.lr=0.1"],
    "single": ["--method", "single"],
}  # fmt: skip


def main() -> None:
    """Run what is not done yet."""
    for seed in SEEDS:
        for label, settings in ROWS.items():
            folder = OUT / f"{label}-seed{seed}"
            if (folder / "summary.json").exists():
                continue
            more = ["--resume"] if (folder / "config.json").exists() else ["--seed", str(seed), *settings]
            command = [sys.executable, "-m", "skerry", "train", "fashion-mlp", "--out", str(folder)]
            subprocess.run([*command, "--runtime", "processes", *more], check=True)
    subprocess.run([sys.executable, "-m", "skerry", "report", str(OUT)], check=True)


if __name__ == "__main__":
    main()
