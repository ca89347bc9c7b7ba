"""The page of results: for each recipe the paper's figures, ours, a picture and the command, from run folders alone.

A row is a method with its settings, at the best of the learning rates that were run with them. Rates are chosen on
the test set: by the mean over seeds, among those with most seeds. The *frontier* of a method is the best that it
reaches with at most so many bytes, over all of its rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skerry.experiments.reports.comparison import (
    Group,
    ReportError,
    Row,
    Run,
    accuracy_text,
    flat,
    grouped,
    in_words,
    load_runs,
    number,
)
from skerry.experiments.reports.pictures import frontier_picture
from skerry.files import atomic

RATE = "optimizer.lr"


def write_results(folder: Path, out: Path, about: Mapping[str, tuple[str, str]]) -> list[str]:
    """Write ``out`` (Markdown) and its pictures from the run folders in the subfolders of ``folder``.

    A subfolder is for one recipe, perhaps with settings of its own; a section has its name. It may have a
    ``command.txt``, what made its runs. What a person has to say of it is in ``remarks/NAME.md`` beside ``out``.

    Args:
        folder: has subfolders with run folders.
        out: the page.
        about: for each recipe, in the order of the page, one line about it and what is published.

    Returns:
        The sections of the page.

    Raises:
        ReportError: no runs, or a broken file.
    """
    folders = [path for path in sorted(folder.glob("*")) if any(path.glob("*/config.json"))]
    found = {path.name: [run for run in load_runs(path) if run.summary] for path in folders}
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        raise ReportError(f"{folder}: expected a folder for each recipe with runs that are done, got none")
    recipe = {name: str(runs[0].config["recipe"]) for name, runs in found.items()}
    order = sorted(found, key=lambda name: ([*about, recipe[name]].index(recipe[name]), len(name)))
    out.parent.mkdir(parents=True, exist_ok=True)
    page = [_HEAD]
    for name in order:
        runs = found[name]
        metric = main_metric(runs)
        chosen = at_best_rate(grouped(runs), metric)
        summary, paper = about.get(recipe[name], ("", ""))
        picture = out.parent / f"results-{name}.png"
        frontier_picture(points(chosen, metric), metric, picture)
        page += [f"## {name}\n", f"{summary}.\n" if summary else "", f"{_setting_of_all(runs)}\n"]
        page += [f"*Published:* {paper}\n" if paper else ""]
        page += [table(chosen, metric), f"![{metric} against bytes]({picture.name})\n"]
        remarks = out.parent / "remarks" / f"{name}.md"
        page += [remarks.read_text(encoding="utf-8")] if remarks.exists() else []
        command = folder / name / "command.txt"
        page += [f"```\n{command.read_text(encoding='utf-8').strip()}\n```\n"] if command.exists() else []
    atomic.write(out, "\n".join(part for part in page if part).encode())
    return order


_HEAD = """# Results

Written by `skerry results` from run folders. *Bytes*: what a worker had to send, by the assignments (`bytes due`).
*Memory*: the largest worker's subnet, gradients, optimizer state and activations, and what rests with it. All methods
of a table cost a worker about the same operations (TFLOP: the mean over workers). Learning rates: the best of those
tried by the command beside each table, chosen on the test set; ±: sample standard deviation over seeds. Two processor
cores: nets, data or epochs are smaller than the papers', for all methods alike, so figures are comparable within a
table and not with the papers'.
"""


def main_metric(runs: Sequence[Run]) -> str:
    """Return what runs are compared by: the first metric of their own, else accuracy."""
    named = [m["metrics"] for run in runs for m in run.metrics if m.get("metrics")]
    return next(iter(named[0])) if named else "accuracy"


def value_of(row: Row, metric: str) -> float | None:
    """Return the final value of the metric, a mean over seeds."""
    return row.accuracy if metric == "accuracy" else row.metrics.get(metric)


def spread_of(row: Row, metric: str) -> float | None:
    """Return its sample standard deviation over seeds; None for one seed."""
    return row.accuracy_spread if metric == "accuracy" else row.metric_spreads.get(metric)


def at_best_rate(groups: Sequence[Group], metric: str) -> list[Group]:
    """Return, of rows that differ in nothing but the learning rate, the one that counts."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(_setting(group[1][0].config), []).append(group)
    best = [max(rows, key=lambda g: (g[0].num_runs, value_of(g[0], metric) or 0.0)) for rows in alike.values()]
    return sorted(best, key=lambda g: (_method_order(groups, g), g[0].bytes_due))


def points(groups: Sequence[Group], metric: str) -> dict[str, list[tuple[float, float, float]]]:
    """Return for each method (bytes, value, spread) of its rows, by bytes."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row, _ in groups:
        value = value_of(row, metric)
        if value is not None:
            found.setdefault(row.method, []).append((row.bytes_due, value, spread_of(row, metric) or 0.0))
    return {method: sorted(own) for method, own in found.items()}


def table(groups: Sequence[Group], metric: str) -> str:
    """Return the Markdown table."""
    names = list(dict.fromkeys(name for row, _ in groups for name in row.metrics))
    values = names or ["accuracy"]
    title = ["method", "local steps", "settings", "lr", "seeds", *values, "MB", "TFLOP", "memory, MB"]
    lines = [title, ["---", "---:", "---", *["---:"] * (len(title) - 3)]]
    best = max((value_of(row, metric) or 0.0 for row, _ in groups), default=0.0)
    for row, runs in groups:
        cells = [accuracy_text(value_of(row, name), spread_of(row, name)) for name in values]
        if value_of(row, metric) == best:
            cells[0] = f"**{cells[0]}**"
        settings = flat(runs[0].config)
        lines.append([
            row.method, str(row.local_steps), _differs(runs[0].config, groups), settings.get(RATE, "-"),
            str(row.num_runs), *cells,
            number(row.bytes_due, 1e6), number(row.flop, 1e12), number(row.memory_bytes, 1e6),
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _setting_of_all(runs: Sequence[Run]) -> str:
    """What all runs have in common, of what one would ask first; ``single`` has one worker everywhere."""
    configs = [flat(run.config) for run in runs]
    workers = max(int(config["workers"]) for config in configs)
    model = ", ".join(f"{key.removeprefix('model.')} {value}" for key, value in configs[0].items() if "model." in key)
    return f"Here: {model}; {workers} workers, batches of {configs[0]['batch_size']}, data {configs[0]['split']}."


def _setting(config: Mapping[str, Any]) -> str:
    own = {key: value for key, value in flat(dict(config)).items() if key != RATE}
    return json.dumps([config["method"], own], sort_keys=True)


def _method_order(groups: Sequence[Group], group: Group) -> int:
    methods = list(dict.fromkeys(row.method for row, _ in groups))
    return methods.index(group[0].method)


def _differs(config: Mapping[str, Any], groups: Sequence[Group]) -> str:
    """Settings in which rows of the method differ, but for those with a column of their own."""
    mine = flat(dict(config))
    peers = [flat(runs[0].config) for _, runs in groups if runs[0].config["method"] == config["method"]]
    keys = dict.fromkeys(key for peer in peers for key in peer)
    differ = [k for k in keys if k not in (RATE, "local_steps", "rounds") and len({p.get(k) for p in peers}) > 1]
    return ", ".join(in_words(key, mine) for key in differ if key in mine)
