"""Seconds to a target on hosts with slow links: a recipe by Skerry's methods, and by torchft's DiLoCo.

    SKERRY_DATA=... python bench/distributed/recipe_links.py gpt-shakespeare --rate 10mbit --length .33  # as root
    SKERRY_DATA=... python bench/distributed/recipe_links.py gist-wordnet --rate 100mbit
    python bench/distributed/recipe_links.py gpt-shakespeare --table

Four hosts on one machine (``hosts.py``) run the recipe by torchrun. The target is an accuracy; for language models, the
last loss of DiLoCo, which runs first and to its end. The others are stopped when they have reached it. Time is the
first process's, without evaluations and checkpoints. ``--length`` is that of ``bench/accuracy/language_models.py``.
torchft's DiLoCo is left out where torchft is not installed (``train_torchft.py``).
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts import Hosts, why_not

from skerry.experiments.recipes import find_recipe
from skerry.experiments.reports.comparison import markdown_table
from skerry.experiments.runs.execute import configured

NUM_HOSTS, TORCHFT = 4, "torchft's DiLoCo"


@dataclass(frozen=True)
class Bench:
    """What is compared.

    Attributes:
        methods: in the order in which they run; each with settings of its own.
        accuracy: the target; None: the last loss of DiLoCo.
    """

    methods: Mapping[str, Mapping[str, Any]]
    accuracy: float | None = None

    def beside(self) -> str:
        """Return the method that others are compared with."""
        return "diloco" if self.accuracy is None else "local_sgd"

    def good(self, row: Mapping[str, Any], target: float) -> bool:
        """Say whether an evaluated round has reached the target."""
        return bool(row["loss"] <= target if self.accuracy is None else row["accuracy"] >= target)


def at(lr: float, every: int) -> dict[str, Any]:
    """Return settings: a learning rate, the best that was found for the method, and rounds between evaluations."""
    return {"optimizer.lr": lr, "eval_every": every, "threads": 1, "timeout_s": 60}


BENCHES = {
    "gpt-shakespeare": Bench({
        "diloco": at(0.008, 3), TORCHFT: at(0.008, 3), "relay": at(0.016, 1), "narrow": at(0.016, 3),
        "local_sgd": at(0.016, 3), "ddp": at(0.016, 3),
    }),
    "gist-wordnet": Bench({"relay": at(0.01, 4), "narrow": at(0.01, 4), "local_sgd": at(0.01, 1)}, accuracy=0.87),
}  # fmt: skip


def command(recipe: str, method: str, length: float, folder: Path) -> list[str]:
    """Return what torchrun starts."""
    settings = dict(BENCHES[recipe].methods[method])
    if length != 1:
        longer = "local_steps" if method == "relay" else "rounds"
        config = configured(find_recipe(recipe), "diloco" if method == TORCHFT else method, {})
        settings[longer] = round(length * getattr(config, longer))
    if method == TORCHFT:
        rounds = ["--rounds", str(settings["rounds"])] if length != 1 else []
        script = Path(__file__).parent / "train_torchft.py"
        return [str(script), recipe, "--lr", str(settings["optimizer.lr"]), *rounds, "--out", str(folder)]
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "skerry", "train", recipe, "--method", method, "--out", str(folder), *words]


def curve(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluated rounds so far, with ``seconds`` of training."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    for row in rows:
        row["seconds"] = row["time_s"] - row["evaluate_s"] - row.get("checkpoint_s", 0)
    return [row for row in rows if row["loss"] is not None]


def measure(recipe: str, method: str, rate: str, length: float, target: float | None, out: Path) -> dict[str, Any]:
    """Train on four hosts until the target is reached (None: to the end), and return the row."""
    folder, bench = out / f"{recipe}-{method.replace(' ', '-')}-{rate}-{length:g}", BENCHES[recipe]

    def first_good() -> dict[str, Any] | None:
        return None if target is None else next((row for row in curve(folder) if bench.good(row, target)), None)

    with Hosts(NUM_HOSTS, rate) as hosts:
        job = hosts.start(command(recipe, method, length, folder), out=out / "logs" / folder.name)
        while first_good() is None and any(process.poll() is None for process in job.processes):
            time.sleep(1)
        if first_good() is not None:
            job.kill()
        codes = job.wait(300)
        sent = hosts.sent_bytes()
    points = curve(folder)
    best = first_good() or points[-1]
    return {
        "method": method, "rate": rate, "length": length, "target": target,
        "seconds": best["seconds"], "loss": best["loss"],
        "accuracy": best.get("accuracy"), "reached": target is None or bench.good(best, target),
        "exchange_s": best.get("exchange_s"), "bytes_due": best.get("bytes_due"), "sent": sent, "codes": codes,
        "curve": [(row["round"] + 1, row["seconds"], row["loss"], row.get("accuracy")) for row in points],
    }  # fmt: skip


def table(rows: list[dict[str, Any]], bench: Bench) -> str:
    """Return the rows as Markdown, each beside one method on the same links."""
    lines = []
    for row in rows:
        same = [r for r in rows if (r["rate"], r["length"]) == (row["rate"], row["length"])]
        beside = next((r for r in same if r["method"] == bench.beside()), None)
        lines.append([
            row["method"], row["rate"], f"{row['length']:g}",
            f"{row['loss']:.3f}" if bench.accuracy is None else f"{row['accuracy']:.4f}",
            f"{row['seconds']:.0f}" + ("" if row.get("reached", True) else " (not reached)"),
            "-" if beside is None else f"{beside['seconds'] / row['seconds']:.1f}",
            "-" if row["exchange_s"] is None else f"{row['exchange_s']:.0f}",
            "-" if row["bytes_due"] is None else f"{row['bytes_due'] / 1e6:.1f}",
        ])  # fmt: skip
    what = "loss" if bench.accuracy is None else "accuracy"
    titles = [
        "method",
        "link",
        "length",
        what,
        "seconds",
        f"as fast as {bench.beside()}, times",
        "of these exchange",
        "MB sent",
    ]
    return markdown_table(titles, lines, left=("method", "link"))


def main() -> None:
    """Run all methods, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=BENCHES)
    parser.add_argument("--rate", default="10mbit", help="of each host's link")
    parser.add_argument("--length", type=float, default=1.0, help="of the training, 1: the recipe's")
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/links"))
    parser.add_argument("--table", action="store_true")
    o = parser.parse_args()
    bench, path = BENCHES[o.recipe], o.out / f"{o.recipe}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if o.table:
        print(table(rows, bench))
        return
    if problem := why_not():
        parser.error(problem)
    o.out.mkdir(parents=True, exist_ok=True)
    for method in o.methods.split(",") if o.methods else bench.methods:
        if method == TORCHFT and importlib.util.find_spec("torchft") is None:
            print("torchft is not installed here: left out")
            continue
        target = bench.accuracy
        if target is None and method != "diloco":
            same = [row for row in rows if (row["rate"], row["length"]) == (o.rate, o.length)]
            target = [row["loss"] for row in same if row["method"] == "diloco"][-1]
        row = measure(o.recipe, method, o.rate, o.length, target, o.out)
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(method, row["loss"], row["accuracy"], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
