"""Accuracy under differential privacy: methods and the wide net on recipe private-fashion, at epsilon 2, 4 and 8.

    SKERRY_DATA=data python bench/accuracy/private.py --out runs/private     # finished runs are kept

Each method is tuned by itself: all clipping norms, and learning rates times clipping norm, at epsilon 4; then at the
other epsilons the best clipping norm with the best learning rate, its half and its double. The choice is by accuracy on
the test set. Noise is repeatable (the data set is public). Each finished run is a line of results.jsonl.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch

from skerry.experiments.recipes import RECIPES
from skerry.experiments.runs.execute import arguments_of, configure
from skerry.training import TheoryWarning, train

METHODS = ("narrow", "relay", "ist", "ensemble", "local_sgd")
STEPS, CLIPS = (4.0, 8.0, 16.0, 2.0), (1.0, 4.0)
FIRST = 4.0
Key = tuple[str, float, float, float]
"""Method, epsilon, learning rate times clipping norm, clipping norm."""


class Runs:
    """The runs that are finished, in a file; others are trained when they are asked for."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed = path, seed
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self._done = {tuple(line["key"]): line for line in map(json.loads, lines) if line["seed"] == seed}

    def accuracy(self, key: Key) -> float:
        """Return the accuracy of a run on the test set."""
        if key not in self._done:
            self._done[key] = {"key": key, "seed": self._seed, **self._train(*key)}
            with self._path.open("a") as file:
                file.write(json.dumps(self._done[key]) + "\n")
            print(self._done[key], flush=True)
        return float(self._done[key]["accuracy"])

    def _train(self, method: str, epsilon: float, step: float, clip: float) -> dict[str, object]:
        settings = {"target_epsilon": epsilon, "max_grad_norm": clip, "seed": self._seed}
        changes = {f"private.{name}": value for name, value in settings.items()}
        changes |= {"optimizer.lr": step / clip, "seed": self._seed, "device": "cpu"}
        config = configure("private-fashion", method, changes)
        job = RECIPES["private-fashion"]().build(config)
        result = train(
            job.model,
            job.loss_fn,
            job.data,
            test=job.test,
            privacy=config.private.asked_for,
            **arguments_of(config, job),
        )
        assert result.score is not None
        private = result.session.setup.private
        assert private is not None
        found = {"accuracy": result.score.accuracy, "loss": result.score.loss, "noise": private.noise[0]}
        return found | {"epsilon": max(result.history[-1].epsilon), "local_s": result.state.totals["local_s"]}


def keys_of(method: str, epsilon: float, steps: tuple[float, ...], clips: tuple[float, ...]) -> list[Key]:
    """Return the keys of some runs of a method."""
    return [(method, epsilon, step, clip) for clip in clips for step in steps]


def main() -> None:
    """Train what is missing, and print a row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/private"))
    parser.add_argument("--epsilons", type=float, nargs="+", default=(2.0, 4.0, 8.0))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TheoryWarning)
    runs = Runs(args.out / "results.jsonl", args.seed)
    tried = {method: keys_of(method, FIRST, STEPS, CLIPS) for method in args.methods}
    for keys in zip(*tried.values(), strict=True):  # all methods at the same settings first
        for key in keys:
            runs.accuracy(key)
    print("| method |", " | ".join(f"epsilon {epsilon:g}" for epsilon in args.epsilons), "|")
    print("|---|", "---:|" * len(args.epsilons), sep="")
    for method, keys in tried.items():
        _, _, step, clip = max(keys, key=runs.accuracy)
        cells = []
        for epsilon in args.epsilons:
            others = keys if epsilon == FIRST else keys_of(method, epsilon, (step / 2, step, 2 * step), (clip,))
            key = max(others, key=runs.accuracy)
            cells.append(f"{runs.accuracy(key):.4f} (rate {key[2] / key[3]:g}, norm {key[3]:g})")
        print(f"| {method} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
