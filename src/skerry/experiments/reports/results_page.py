"""The page of results: per recipe the paper's figures, ours, a picture and the command, all from run folders.

A row is a method with its settings, at the best learning rate that was run with them. Rates are chosen on the test set,
by the mean over seeds, among those with the most seeds. The *frontier* of a method is the best value it reaches with at
most a given number of bytes, over all of its rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from skerry.experiments.reports.comparison import (
    Group,
    ReportError,
    Row,
    Run,
    accuracy_text,
    differing,
    flat,
    grouped,
    in_words,
    load_runs,
    markdown_table,
    number,
    rank,
)
from skerry.experiments.reports.pictures import frontier_picture
from skerry.files import atomic

RATE = "optimizer.lr"


def write_results(folder: Path, out: Path, about: Mapping[str, tuple[str, str]]) -> list[str]:
    """Write ``out`` (Markdown) and its pictures from the run folders in the subfolders of ``folder``.

    Each subfolder becomes a section of its name: one recipe, possibly with changed settings. The command that made its
    runs is read from ``command.txt`` in it, and remarks by hand from ``remarks/NAME.md`` beside ``out``.

    Args:
        folder: has subfolders with run folders.
        out: the page.
        about: for each recipe, in the order of the page, one line about it and the published figures.

    Returns:
        The sections of the page.

    Raises:
        ReportError: there are no finished runs, or a file is broken.
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
        page += [_table(chosen, metric), f"![{metric} against bytes]({picture.name})\n"]
        remarks = out.parent / "remarks" / f"{name}.md"
        page += [remarks.read_text(encoding="utf-8")] if remarks.exists() else []
        command = folder / name / "command.txt"
        page += [f"```sh\n{command.read_text(encoding='utf-8').strip()}\n```\n"] if command.exists() else []
    atomic.write(out, "\n".join(part for part in page if part).encode())
    return order


_HEAD = """# Results

Written by `skerry results` from run folders.

- *MB*: what a worker has to send, computed from the assignments (`bytes due`).
- *Memory*: the largest worker's subnet, gradients, optimizer state, activations and what it stores for others.
- *TFLOP*: the mean over workers. All methods of a table cost a worker about the same operations.
- *lr*: the best of the learning rates tried by the command below each table, chosen on the test set.
- *±*: the sample standard deviation over seeds.

The machine has two processor cores, so nets, data or epochs are smaller than the papers', for all methods alike.
Compare figures within a table, not with the papers'.
"""


def main_metric(runs: Sequence[Run]) -> str:
    """Return the metric that runs are compared by: the first of their own metrics, else accuracy."""
    named = [m["metrics"] for run in runs for m in run.metrics if m.get("metrics")]
    return next(iter(named[0])) if named else "accuracy"


def value_of(row: Row, metric: str) -> float | None:
    """Return the final value of the metric, averaged over seeds."""
    return row.accuracy if metric == "accuracy" else row.metrics.get(metric)


def spread_of(row: Row, metric: str) -> float | None:
    """Return the sample standard deviation of the metric over seeds; None for a single seed."""
    return row.accuracy_spread if metric == "accuracy" else row.metric_spreads.get(metric)


def at_best_rate(groups: Sequence[Group], metric: str) -> list[Group]:
    """Return, of rows that differ only in the learning rate, the best among those with the most seeds."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        config = group[1][0].config
        setting = {key: value for key, value in flat(config).items() if key != RATE}
        alike.setdefault(json.dumps([config["method"], setting], sort_keys=True), []).append(group)
    best = [max(rows, key=lambda g: (g[0].num_runs, rank(value_of(g[0], metric), metric))) for rows in alike.values()]
    methods = [row.method for row, _ in groups]
    return sorted(best, key=lambda g: (methods.index(g[0].method), g[0].bytes_due))


def points(groups: Sequence[Group], metric: str) -> dict[str, list[tuple[float, float, float]]]:
    """Return, for each method, (bytes, value, spread) of its rows, by bytes."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row, _ in groups:
        value = value_of(row, metric)
        if value is not None:
            found.setdefault(row.method, []).append((row.bytes_due, value, spread_of(row, metric) or 0.0))
    return {method: sorted(own) for method, own in found.items()}


def _table(groups: Sequence[Group], metric: str) -> str:
    """Return the Markdown table, with the best value in bold."""
    values = list(dict.fromkeys(name for row, _ in groups for name in row.metrics)) or ["accuracy"]
    best = max((rank(value_of(row, metric), metric) for row, _ in groups), default=0.0)
    lines = []
    for row, runs in groups:
        cells = [accuracy_text(value_of(row, name), spread_of(row, name)) for name in values]
        if rank(value_of(row, metric), metric) == best:
            cells[0] = f"**{cells[0]}**"
        mine = flat(runs[0].config)
        differ = differing([flat(peers[0].config) for peer, peers in groups if peer.method == row.method])
        words = [in_words(k, mine) for k in differ if k in mine and k not in (RATE, "local_steps", "rounds")]
        lines.append([
            row.method, str(row.local_steps), ", ".join(words), mine.get(RATE, "-"), str(row.num_runs), *cells,
            number(row.bytes_due, 1e6), number(row.flop, 1e12), number(row.memory_bytes, 1e6),
        ])  # fmt: skip
    titles = ["method", "local steps", "settings", "lr", "seeds", *values, "MB", "TFLOP", "memory, MB"]
    return markdown_table(titles, lines, left=("method", "settings"))


def _setting_of_all(runs: Sequence[Run]) -> str:
    """Describe the settings that all runs share; ``single`` always has one worker."""
    configs = [flat(run.config) for run in runs]
    workers = max(int(config["workers"]) for config in configs)
    model = ", ".join(f"{key.removeprefix('model.')} {value}" for key, value in configs[0].items() if "model." in key)
    return f"Here: {model}; {workers} workers, batches of {configs[0]['batch_size']}, data {configs[0]['split']}."
