"""Validation loss of language models at equal operations per worker: methods, learning rates, lengths.

    SKERRY_DATA=... python bench/accuracy/language_models.py gpt-shakespeare --lengths 1,3
    python bench/accuracy/language_models.py gpt-shakespeare --table

Every run adds a line to ``OUT/RECIPE.jsonl`` when it is done, and is not repeated. All methods are run at their first
learning rate before any is run at its second. ``central`` is one machine with the batches of all workers, so with four
times the operations. A length of 3 has three times the rounds.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import load_run, markdown_table, number
from skerry.experiments.runs.execute import configure, run
from skerry.runtimes import Serial
from skerry.training import TheoryWarning, TrainingFailed


@dataclass(frozen=True)
class Line:
    """A row of the table: a method with settings, and the rates to try, the likeliest first."""

    method: str
    rates: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return self.label or self.method


CENTRAL: Mapping[str, Any] = {"batch_size": 128}
LINES: Mapping[str, tuple[Line, ...]] = {
    "gpt-shakespeare": (
        Line("narrow", (0.016, 0.008, 0.032)),
        Line("relay", (0.016, 0.008, 0.032)),
        Line("ensemble", (0.016, 0.008, 0.032)),
        Line("local_sgd", (0.008, 0.016, 0.004)),
        Line("diloco", (0.004, 0.008, 0.002)),
        Line("ist", (0.012, 0.006, 0.024)),
        Line("single", (0.008, 0.016, 0.004), CENTRAL, "central"),
        Line("resist", (0.008, 0.004, 0.016)),
        Line("single", (0.008, 0.004, 0.016)),
    ),
}


def settings_of(recipe: str, line: Line, rate: float, length: float, seed: int) -> dict[str, Any]:
    """Return the settings of one run; a relay has the same number of rounds at every length, and longer ones."""
    built = RECIPES[recipe]()
    own = built.config.change(dict(built.methods[line.method]))
    longer = "local_steps" if line.method in ("relay", "ensemble") else "rounds"
    size = {longer: max(1, round(length * getattr(own, longer)))}
    return {**size, **line.settings, "optimizer.lr": rate, "seed": seed, "eval_every": 0, "threads": 1}


def measure(recipe: str, line: Line, rate: float, length: float, seed: int) -> dict[str, Any]:
    """Train once and return its figures; without a loss if training failed."""
    key = {"name": line.name, "rate": rate, "length": length, "seed": seed}
    settings = settings_of(recipe, line, rate, length, seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TheoryWarning)
        try:
            run(configure(recipe, line.method, settings), Path(folder) / "run", Serial(), resume=False)
        except TrainingFailed as error:
            return key | {"failed": str(error)}
        done = load_run(Path(folder) / "run")
    last, memory = done.metrics[-1], done.summary["memory_bytes"]
    steps = done.config["rounds"] * done.config["local_steps"]
    figures = {"loss": last["loss"], "perplexity": last["metrics"]["perplexity"], "train_loss": last["train_loss"]}
    costs = {"bytes_due": last["bytes_due"], "flop": last["flop"], "memory": memory, "time_s": last["time_s"]}
    return key | figures | costs | {"steps": steps}


def table(rows: list[dict[str, Any]]) -> str:
    """Return each line at its best rate, for every length, as Markdown; best: the lowest mean loss over seeds."""
    lines = []
    good = [row for row in rows if row.get("loss") is not None]
    for length in sorted({row["length"] for row in good}):
        for name in dict.fromkeys(row["name"] for row in good if row["length"] == length):
            own = [row for row in good if (row["name"], row["length"]) == (name, length)]
            by_rate = {rate: [row for row in own if row["rate"] == rate] for rate in sorted({r["rate"] for r in own})}
            loss = {rate: sum(row["loss"] for row in runs) / len(runs) for rate, runs in by_rate.items()}
            best = min(loss, key=lambda rate: loss[rate])
            first, seeds = by_rate[best][0], len(by_rate[best])
            memory = first["memory"]
            held = sum(value for kind, value in memory.items() if kind != "activations")
            lines.append([
                name, f"{length:g}", f"{best:g} of {', '.join(f'{rate:g}' for rate in loss)}", str(seeds),
                f"{loss[best]:.3f}", f"{first['perplexity']:.2f}", number(first["flop"], 1e12), str(first["steps"]),
                number(first["bytes_due"], 1e6), number(held, 1e6), number(memory["activations"], 1e6),
            ])  # fmt: skip
    titles = ["method", "length", "rate", "seeds", "validation loss", "perplexity", "TFLOP", "steps", "MB sent"]
    return markdown_table([*titles, "memory, MB", "activations, MB"], lines, left=("method",))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=LINES)
    parser.add_argument("--lengths", default="1", help="comma-separated")
    parser.add_argument("--methods", default="", help="comma-separated names of lines; all by default")
    parser.add_argument("--rates", type=int, default=3, help="how many of each line's rates")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    options = parser.parse_args()
    path = options.out / f"{options.recipe}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if options.table:
        print(table(rows))
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    done = {(row["name"], row["rate"], row["length"], row["seed"]) for row in rows}
    only = options.methods.split(",") if options.methods else [line.name for line in LINES[options.recipe]]
    lines = [line for line in LINES[options.recipe] if line.name in only]
    in_turn = [[(line, rate) for rate in line.rates[: options.rates]] for line in lines]
    for length in map(float, options.lengths.split(",")):
        for line, rate in [pair for turn in zip_longest(*in_turn) for pair in turn if pair is not None]:
            for seed in range(options.seeds):
                if (line.name, rate, length, seed) not in done:
                    row = measure(options.recipe, line, rate, length, seed)
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row["name"], rate, length, seed, row.get("loss"), row.get("time_s"), flush=True)


if __name__ == "__main__":
    main()
