"""Seconds to DiLoCo's final loss on hosts with slow links, a language model: Skerry's methods and torchft's DiLoCo.

    SKERRY_DATA=... python bench/distributed/language_links.py --rate 10mbit --length .33      # Linux, as root
    python bench/distributed/language_links.py --table

Four hosts on one machine (``hosts.py``) run the recipe by torchrun. DiLoCo runs first and to its end; its last loss is
the target, and the other methods are stopped when they have reached it. Time is the first process's, without
evaluations and checkpoints. ``--length`` is that of ``bench/accuracy/language_models.py``. torchft's DiLoCo is left out
where torchft is not installed (``train_torchft.py``).
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from hosts import Hosts, why_not

from skerry.experiments.recipes import find_recipe
from skerry.experiments.reports.comparison import markdown_table
from skerry.experiments.runs.execute import configured

RECIPE, NUM_HOSTS = "gpt-shakespeare", 4
TORCHFT = "torchft's DiLoCo"
# the best of each
RATES = {"diloco": 0.008, TORCHFT: 0.008, "relay": 0.016, "narrow": 0.016, "local_sgd": 0.016, "ddp": 0.016}
EVERY = 3  # rounds


def command(method: str, length: float, folder: Path) -> list[str]:
    """Return what torchrun starts."""
    longer = "local_steps" if method == "relay" else "rounds"
    built = find_recipe(RECIPE)
    size = round(length * getattr(configured(built, "diloco" if method == TORCHFT else method, {}), longer))
    if method == TORCHFT:
        script = Path(__file__).parent / "train_torchft.py"
        return [str(script), RECIPE, "--lr", str(RATES[method]), "--rounds", str(size), "--out", str(folder)]
    settings = {"optimizer.lr": RATES[method], longer: size, "threads": 1, "timeout_s": 60}
    settings["eval_every"] = 1 if method == "relay" else EVERY
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "skerry", "train", RECIPE, "--method", method, "--out", str(folder), *words]


def curve(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluated rounds so far, with ``seconds`` of training."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    for row in rows:
        row["seconds"] = row["time_s"] - row["evaluate_s"] - row.get("checkpoint_s", 0)
    return [row for row in rows if row["loss"] is not None]


def measure(method: str, rate: str, length: float, target: float, out: Path) -> dict[str, Any]:
    """Train on four hosts until the loss is at most ``target``, and return the row."""
    folder = out / f"{method.replace(' ', '-')}-{rate}-{length:g}"
    with Hosts(NUM_HOSTS, rate) as hosts:
        job = hosts.start(command(method, length, folder), out=out / "logs" / folder.name)
        while (points := curve(folder)) is not None and not any(row["loss"] <= target for row in points):
            if all(process.poll() is not None for process in job.processes):
                break
            time.sleep(1)
        if target > 0 and any(row["loss"] <= target for row in points):
            job.kill()
        codes = job.wait(300)
        sent = hosts.sent_bytes()
    points = curve(folder)
    best = next((row for row in points if row["loss"] <= target), points[-1])
    return {
        "method": method, "rate": rate, "length": length, "target": target,
        "seconds": best["seconds"], "loss": best["loss"],
        "exchange_s": best.get("exchange_s"), "bytes_due": best.get("bytes_due"), "sent": sent, "codes": codes,
        "curve": [(row["round"] + 1, row["seconds"], row["loss"]) for row in points],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, each beside DiLoCo on the same links."""
    lines = []
    for row in rows:
        same = [r for r in rows if (r["rate"], r["length"]) == (row["rate"], row["length"])]
        beside = next(r["seconds"] for r in same if r["method"] == "diloco")
        lines.append([
            row["method"], row["rate"], f"{row['length']:g}", f"{row['loss']:.3f}",
            f"{row['seconds']:.0f}", f"{beside / row['seconds']:.1f}",
            "-" if row["exchange_s"] is None else f"{row['exchange_s']:.0f}",
            "-" if row["bytes_due"] is None else f"{row['bytes_due'] / 1e6:.1f}",
        ])  # fmt: skip
    titles = ["method", "link", "length", "loss reached", "seconds", "times faster", "of these exchange", "MB sent"]
    return markdown_table(titles, lines, left=("method", "link"))


def main() -> None:
    """Run all methods, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="10mbit", help="of each host's link")
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--methods", default=",".join(RATES), help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/links"))
    parser.add_argument("--table", action="store_true")
    o = parser.parse_args()
    path = o.out / f"{RECIPE}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if o.table:
        print(table(rows))
        return
    if problem := why_not():
        parser.error(problem)
    o.out.mkdir(parents=True, exist_ok=True)
    for method in o.methods.split(","):
        if method == TORCHFT and importlib.util.find_spec("torchft") is None:
            print("torchft is not installed here: left out")
            continue
        same = [row for row in rows if (row["rate"], row["length"]) == (o.rate, o.length)]
        final = [row["loss"] for row in same if row["method"] == "diloco"]
        row = measure(method, o.rate, o.length, 0.0 if method == "diloco" else final[-1], o.out)
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(method, row["loss"], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
