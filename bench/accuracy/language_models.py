"""Validation loss of language models at equal operations per worker: methods, learning rates, lengths.

    SKERRY_DATA=... python bench/accuracy/language_models.py gpt-shakespeare --lengths 1,3
    python bench/accuracy/language_models.py gpt-shakespeare --table

Every run adds a line to ``OUT/RECIPE.jsonl`` when it is done, and is not repeated. All methods are run at their first
learning rate before any is run at its second. ``central`` is one machine with the batches of all workers, so with four
times the operations. Nets ``by kind`` have their own kind of text each. A length of 3 has three times the rounds.

The loss is of the full model: of several nets, of the mean of their logits. Their mixture by the likelihood of the text
before in the same block is measured, too, and one that also remembers the blocks before, each half as much as the one
after it.

With ``--mixed`` the text is Shakespeare and twice as much of Python's documentation, in parts of 20,000
characters in a random order, so that there are kinds of text.
"""

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import load
from skerry.experiments.datasets.archives import made_file
from skerry.experiments.datasets.texts import python_docs
from skerry.experiments.recipes import RECIPES
from skerry.experiments.reports.comparison import load_run, markdown_table, number
from skerry.experiments.reports.pictures import PALETTE, plain_log_axis, set_style
from skerry.experiments.runs.execute import configure, run
from skerry.randomness import generator
from skerry.runtimes import Serial
from skerry.subnet import Mixture, SideBySide
from skerry.training import TheoryWarning, TrainingFailed

PART = 20_000
KEPT = 0.5  # of the log-likelihood of the blocks before


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
BY_KIND: Mapping[str, Any] = {"split": "by_label"}
LINES: Mapping[str, tuple[Line, ...]] = {
    "gpt-shakespeare": (
        Line("narrow", (0.032, 0.016, 0.008, 0.064)),
        Line("relay", (0.032, 0.016, 0.008, 0.064)),
        Line("ensemble", (0.032, 0.016, 0.008, 0.064)),
        Line("ensemble", (0.016, 0.008, 0.032), BY_KIND, "ensemble by kind"),
        Line("local_sgd", (0.016, 0.032, 0.008, 0.004)),
        Line("diloco", (0.008, 0.016, 0.004, 0.002)),
        Line("ist", (0.024, 0.012, 0.006, 0.048)),
        Line("single", (0.016, 0.032, 0.008, 0.004), CENTRAL, "central"),
        Line("resist", (0.008, 0.004, 0.016)),
        Line("single", (0.008, 0.004, 0.016)),
    ),
    "llama-docs": (
        Line("narrow", (0.006, 0.012, 0.003)),
        Line("ensemble", (0.006, 0.012, 0.003)),
        Line("ensemble", (0.006, 0.012, 0.003), BY_KIND, "ensemble by kind"),
        Line("relay", (0.006, 0.012, 0.003)),
        Line("local_sgd", (0.003, 0.006, 0.0015)),
        Line("single", (0.003, 0.006, 0.0015), CENTRAL, "central"),
        Line("diloco", (0.002, 0.004, 0.001)),
        Line("ist", (0.003, 0.006, 0.0015)),
    ),
}


def mixed_text() -> str:
    """Return parts of two texts in a random order."""
    play, docs = made_file("shakespeare").read_text(), python_docs()
    docs = docs[: 2 * len(play)]
    parts = [text[start : start + PART] for text in (play, docs) for start in range(0, len(text), PART)]
    order = torch.randperm(len(parts), generator=generator("mixed text"))
    return "".join(parts[k] for k in order.tolist())


def settings_of(recipe: str, line: Line, rate: float, length: float, seed: int) -> dict[str, Any]:
    """Return the settings of one run; a relay has the same number of rounds at every length, and longer ones."""
    built = RECIPES[recipe]()
    own = built.config.change(dict(built.methods[line.method]))
    longer = "local_steps" if line.method in ("relay", "ensemble") else "rounds"
    size = {longer: max(1, round(length * getattr(own, longer)))}
    return {**size, **line.settings, "optimizer.lr": rate, "seed": seed, "eval_every": 0, "threads": 1}


def measure(recipe: str, line: Line, rate: float, length: float, seed: int, file: str) -> dict[str, Any]:
    """Train once and return its figures; without a loss if training failed."""
    key = {"name": line.name, "rate": rate, "length": length, "seed": seed}
    settings = {**settings_of(recipe, line, rate, length, seed), "data.file": file}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TheoryWarning)
        try:
            run(configure(recipe, line.method, settings), Path(folder) / "run", Serial(), resume=False)
        except TrainingFailed as error:
            return key | {"failed": str(error)}
        done, model = load_run(Path(folder) / "run"), load(Path(folder) / "run").model
        test = RECIPES[recipe]().task(configure(recipe, line.method, settings)).test
    last, memory = done.metrics[-1], done.summary["memory_bytes"]
    steps = done.config["rounds"] * done.config["local_steps"]
    figures = {"loss": last["loss"], "perplexity": last["metrics"]["perplexity"], "train_loss": last["train_loss"]}
    costs = {"bytes_due": last["bytes_due"], "flop": last["flop"], "memory": memory, "time_s": last["time_s"]}
    mixtures = mixture_losses(list(model.nets), *test) if isinstance(model, SideBySide) else {}
    return key | figures | mixtures | costs | {"steps": steps}


@torch.no_grad()
def mixture_losses(nets: list[nn.Module], x: Tensor, y: Tensor, size: int = 256) -> dict[str, float]:
    """Return the loss of the mixture of nets on consecutive blocks, without and with memory, and of the best net."""
    mixture = Mixture(nets).eval()
    parts = [slice(first, first + size) for first in range(0, len(x), size)]
    whole = torch.cat([x, y[:, -1:]], 1)
    seen = torch.cat([_of_targets(nets, whole[part]) for part in parts], 1)  # (nets, blocks)
    before = torch.zeros_like(seen)
    for block in range(1, len(x)):
        before[:, block] = KEPT * (before[:, block - 1] + seen[:, block - 1])

    def loss(remembered: Tensor) -> float:
        logs = (mixture(x[part], remembered[:, part]) for part in parts)
        found = [F.nll_loss(log.flatten(0, 1), y[part].flatten()) for log, part in zip(logs, parts, strict=True)]
        return sum(float(each) * len(y[part]) for each, part in zip(found, parts, strict=True)) / len(y)

    best = -float(seen.mean(1).max()) / x.shape[1]
    return {"best_net": best, "mixture": loss(torch.zeros_like(seen)), "mixture_remembers": loss(before)}


def _of_targets(nets: list[nn.Module], whole: Tensor) -> Tensor:
    """Return the log-likelihood of each block's targets under each net; a block is one token longer than its inputs."""
    outputs = [net(whole[:, :-1]) for net in nets]
    logs = [(each if isinstance(each, Tensor) else each["logits"]).log_softmax(-1) for each in outputs]
    return torch.stack([log.gather(-1, whole[:, 1:, None]).sum((1, 2)) for log in logs])


@dataclass(frozen=True)
class Best:
    """A line of one length at its best rate, that of the lowest mean loss over seeds; figures are means, too."""

    name: str
    length: float
    rate: float
    tried: tuple[float, ...]
    runs: list[dict[str, Any]]

    def mean(self, key: str) -> float:
        """Return the mean of a figure over the seeds; NaN if runs have no such figure."""
        return sum(run.get(key, math.nan) for run in self.runs) / len(self.runs)

    def memory_mb(self, *, activations: bool) -> float:
        """Return the megabytes of activations, or of all else."""
        held = [v for run in self.runs for k, v in run["memory"].items() if (k == "activations") == activations]
        return sum(held) / len(self.runs) / 1e6


def at_best_rates(rows: list[dict[str, Any]]) -> list[Best]:
    """Return each line at its best rate, for every length."""
    found = []
    good = [row for row in rows if row.get("loss") is not None]
    for length in sorted({row["length"] for row in good}):
        for name in dict.fromkeys(row["name"] for row in good if row["length"] == length):
            own = [row for row in good if (row["name"], row["length"]) == (name, length)]
            by_rate = {rate: [row for row in own if row["rate"] == rate] for rate in sorted({r["rate"] for r in own})}
            loss = {rate: sum(row["loss"] for row in runs) / len(runs) for rate, runs in by_rate.items()}
            best = min(loss, key=lambda rate: loss[rate])
            found.append(Best(name, length, best, tuple(loss), by_rate[best]))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return each line at its best rate, for every length, as Markdown."""
    lines = []
    for best in at_best_rates(rows):
        mixtures = (best.mean("mixture"), best.mean("mixture_remembers"))
        lines.append([
            best.name, f"{best.length:g}", f"{best.rate:g} (tried {', '.join(f'{rate:g}' for rate in best.tried)})",
            str(len(best.runs)), f"{best.mean('loss'):.3f}",
            *("-" if math.isnan(loss) else f"{loss:.3f}" for loss in mixtures), f"{math.exp(best.mean('loss')):.2f}",
            number(best.mean("flop"), 1e12), f"{best.mean('steps'):g}", number(best.mean("bytes_due"), 1e6),
            number(best.memory_mb(activations=False)), number(best.memory_mb(activations=True)),
        ])  # fmt: skip
    titles = ["method", "length", "rate", "seeds", "validation loss", "of the mixture", "with memory", "perplexity"]
    costs = ["TFLOP", "steps", "MB sent", "memory, MB", "activations, MB"]
    return markdown_table([*titles, *costs], lines, left=("method",))


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss at length 1 against what a worker needs in memory, and the loss against the length."""
    set_style()
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    every = at_best_rates(rows)
    names = list(dict.fromkeys(best.name for best in every))
    for k, name in enumerate(names):
        look = {"color": PALETTE[k % len(PALETTE)], "marker": "os^D"[k // len(PALETTE)]}
        own = [best for best in every if best.name == name]
        for best in own:
            if best.length == 1:
                memory = sum(best.memory_mb(activations=kind) for kind in (False, True))
                label = f"{name}, {best.mean('bytes_due') / 1e6:.3g} MB sent"
                left.plot(memory, best.mean("loss"), linestyle="none", label=label, **look)
        if len(own) > 1:
            right.plot([best.length for best in own], [best.mean("loss") for best in own], **look)
    left.set(xlabel="memory of a worker, MB, with activations", ylabel="validation loss", xscale="log")
    right.set(xlabel="length", xscale="log")
    plain_log_axis(left.xaxis, (1, 2, 5))
    right.set_xticks(sorted({best.length for best in every}), [f"{x:g}" for x in sorted({b.length for b in every})])
    right.minorticks_off()
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=LINES)
    parser.add_argument("--lengths", default="1", help="comma-separated")
    parser.add_argument("--methods", default="", help="comma-separated names of lines; all by default")
    parser.add_argument("--rates", type=int, default=3, help="how many of each line's rates")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--mixed", action="store_true", help="train on two kinds of text")
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    parser.add_argument("--picture", type=Path, help="with --table: draw it into this PNG file")
    options = parser.parse_args()
    path = options.out / f"{options.recipe}{'-mixed' if options.mixed else ''}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if options.table:
        print(table(rows))
        if options.picture:
            picture(rows, options.picture)
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.mixed:
        path.with_suffix(".txt").write_text(mixed_text())
    file = str(path.with_suffix(".txt")) if options.mixed else ""
    done = {(row["name"], row["rate"], row["length"], row["seed"]) for row in rows}
    only = options.methods.split(",") if options.methods else [line.name for line in LINES[options.recipe]]
    lines = [line for line in LINES[options.recipe] if line.name in only]
    in_turn = [[(line, rate) for rate in line.rates[: options.rates]] for line in lines]
    for length in map(float, options.lengths.split(",")):
        for line, rate in [pair for turn in zip_longest(*in_turn) for pair in turn if pair is not None]:
            for seed in range(options.seeds):
                if (line.name, rate, length, seed) not in done:
                    row = measure(options.recipe, line, rate, length, seed, file)
                    with path.open("a") as rows_file:
                        rows_file.write(json.dumps(row) + "\n")
                    print(row["name"], rate, length, seed, row.get("loss"), row.get("time_s"), flush=True)


if __name__ == "__main__":
    main()
