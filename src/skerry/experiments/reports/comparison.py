"""Compare runs: read their folders, average runs that differ only in the seed, and print tables.

Everything comes from the files in the folders; nothing here trains or evaluates.
"""

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Metric = dict[str, Any]
Group = tuple["Row", list["Run"]]

_TIMES = ("time_s", "local_s", "exchange_s", "evaluate_s", "checkpoint_s")
_METRICS = ("round", "train_loss", "loss", "accuracy", "refused", "bytes_due", "bytes_sent", "flop", *_TIMES)
# Runs that differ only in these are one row: they do not change what is trained.
_NOT_COMPARED = ("seed", "runtime", "versions", "threads", "timeout_s", "eval_every", "checkpoint_every_s")


class ReportError(ValueError):
    """There is no run in a folder, or one of its files is broken."""


@dataclass(frozen=True)
class Run:
    """The content of a run folder; ``units`` and ``summary`` are empty if their files do not exist (yet)."""

    name: str  # the path from the folder that is reported on, or the name of that folder
    config: dict[str, Any]
    metrics: list[Metric]
    units: dict[str, Any]
    summary: dict[str, Any]

    @property
    def num_rounds(self) -> int:
        """Rounds finished so far."""
        return int(self.metrics[-1]["round"]) + 1 if self.metrics else 0

    @property
    def workers(self) -> str:
        """How many workers it has; "4, then 3" if that changed when it was resumed."""
        found = [metric["workers"] for metric in self.metrics if "workers" in metric] or [
            self.config.get("workers", "-")
        ]
        return ", then ".join(str(num) for num, _ in groupby(found))


@dataclass(frozen=True)
class Row:
    """One line of a comparison: the mean over runs that differ only in the seed. Costs are per worker."""

    label: str
    method: str
    local_steps: int | None
    rounds: int  # finished by every run of the row
    num_runs: int
    accuracy: float | None
    accuracy_spread: float | None  # sample standard deviation over the runs
    loss: float | None
    metrics: dict[str, float]
    metric_spreads: dict[str, float]  # likewise
    bytes_due: float
    bytes_sent: float
    flop: float
    memory_bytes: float | None
    time_s: float
    outside_share: float | None  # fraction of time_s not spent in local steps
    exposure: float | None  # the largest share of the units that a worker has held
    epsilon: float | None  # the largest of a worker, in private training


# ---- from files to runs


def load_run(folder: Path, name: str = "") -> Run:
    """Read one run folder. A half-written last line of metrics.jsonl, left by a killed run, is ignored.

    Args:
        folder: the run.
        name: of the run, by default the folder's.

    Raises:
        ReportError: a file is missing or broken.
    """
    config, path = _read_json(folder / "config.json"), folder / "config.json"
    if not isinstance(config.get("method"), str):
        got = repr(config["method"]) if "method" in config else "no such key"
        raise ReportError(f"{path} 'method': expected a name, got {got}; is this a run folder?")
    files = (folder / "units.json", folder / "summary.json")
    units, summary = (_read_json(file) if file.exists() else {} for file in files)
    return Run(name or folder.resolve().name, config, _read_metrics(folder / "metrics.jsonl"), units, summary)


def load_runs(folder: Path) -> list[Run]:
    """Read the run in ``folder``, or else all runs below it, sorted by path and named by it.

    Raises:
        ReportError: there is none, or a file is broken.
    """
    if (folder / "config.json").exists():
        return [load_run(folder)]
    found = list(_run_folders(folder, set()))
    if not found:
        raise ReportError(f"{folder}: expected config.json here or in a folder below, got none; choose another folder")
    return [load_run(path, path.relative_to(folder).as_posix()) for path in found]


def _run_folders(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the run folders below ``folder``. Links are followed, but no folder is entered twice."""
    seen.add(folder.resolve())
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith(".") and path.resolve() not in seen:
            if (path / "config.json").exists():
                seen.add(path.resolve())
                yield path
            else:
                yield from _run_folders(path, seen)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: expected a JSON object, got {error}; restore the file") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: expected a JSON object, got {type(value).__name__}; restore the file")
    return value


def _read_metrics(path: Path) -> list[Metric]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    metrics: list[Metric] = []
    for number, line in enumerate(lines, start=1):
        try:
            metric = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # the run was killed while it wrote this line
            metric = None
        missing = [key for key in _METRICS if not isinstance(metric, dict) or key not in metric]
        if missing:
            where, got = f"{path} line {number}", repr(line[:40])
            raise ReportError(f"{where}: expected an object with {missing[0]!r}, got {got}; remove the line")
        metrics.append(metric)
    return metrics


# ---- from runs to rows


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return one row per setting, averaged over seeds, each with its runs; methods in order of appearance."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        setting = json.dumps([run.config["method"], flat(run.config)], sort_keys=True)
        repeats = 0  # a second run with the same seed gets a row of its own
        while any(run.config.get("seed") == other.config.get("seed") for other in groups.get((setting, repeats), [])):
            repeats += 1
        groups.setdefault((setting, repeats), []).append(run)
    methods = [run.config["method"] for run in runs]

    def place(group: list[Run]) -> tuple[int, int]:
        return methods.index(group[0].config["method"]), group[0].config.get("local_steps") or 0

    ordered = sorted(groups.values(), key=place)
    labels = _labels([group[0].config for group in ordered])
    rows = []
    for label, group in zip(labels, ordered, strict=True):
        unique = label if labels.count(label) == 1 else f"{label}, {group[0].name}"
        rows.append((_row(unique, group), group))
    return rows


def _labels(configs: list[dict[str, Any]]) -> list[str]:
    """Return the method of each config, and the settings in which it differs from others of the same method."""
    labels = []
    for config in configs:
        mine, peers = flat(config), [flat(peer) for peer in configs if peer["method"] == config["method"]]
        differ = differing(peers)
        brief = [key for key in differ if key != "rounds"]  # has a column, and often follows from the steps
        if len({tuple(peer.get(key) for key in brief) for peer in peers}) == len(peers):
            differ = brief
        words = {key: in_words(key, mine) for key in differ if key in mine}
        if "local_steps" in words:
            words["local_steps"] = f"{mine['local_steps']} steps"
        labels.append(", ".join([config["method"], *words.values()]))
    return labels


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ between several results of ``flat``, local steps first."""
    keys = dict.fromkeys(["local_steps", *(key for each in settings for key in each)])
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def in_words(key: str, settings: Mapping[str, str]) -> str:
    """Return a setting of ``flat`` as shown in tables and legends, such as "reshuffle 0.1"."""
    return f"{key.split('.')[-1].replace('_', ' ')} {settings[key]}"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return {"partition": {"reshuffle": 0.1}} as {"partition.reshuffle": "0.1"}, without settings not compared."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value and (prefix or key not in _NOT_COMPARED):
            found |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in (*_NOT_COMPARED, "method"):
            found[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _row(label: str, runs: list[Run]) -> Row:
    def total(key: str, runs: list[Run]) -> float:
        return _mean([run.metrics[-1][key] for run in runs if run.metrics]) or 0.0

    def final(key: str) -> list[float]:
        values = [[m[key] for m in run.metrics if m[key] is not None] for run in runs]
        return [each[-1] for each in values if each]

    memories = [sum(run.summary["memory_bytes"].values()) for run in runs if run.summary.get("memory_bytes")]
    accuracies, metrics, time_s = final("accuracy"), _final_metrics(runs), total("time_s", runs)
    return Row(
        label=label,
        method=runs[0].config["method"],
        local_steps=runs[0].config.get("local_steps"),
        rounds=min(run.num_rounds for run in runs),
        num_runs=len(runs),
        accuracy=_mean(accuracies),
        accuracy_spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        loss=_mean(final("loss")),
        metrics={name: statistics.fmean(values) for name, values in metrics.items()},
        metric_spreads={n: statistics.stdev(values) for n, values in metrics.items() if len(values) > 1},
        bytes_due=total("bytes_due", runs),
        bytes_sent=total("bytes_sent", [run for run in runs if run.config.get("runtime") != "serial"]),
        flop=total("flop", runs),
        memory_bytes=_mean(memories),
        time_s=time_s,
        outside_share=1 - total("local_s", runs) / time_s if time_s > 0 else None,
        epsilon=max((e for run in runs if run.metrics for e in run.metrics[-1].get("epsilon", ())), default=None),
        exposure=_mean([seen for run in runs if (seen := run.metrics and run.metrics[-1].get("exposure"))]),
    )


def rank(value: float | None, metric: str) -> float:
    """Return a number that is the higher the better: of a perplexity, which is better if it is lower, its negative."""
    return -math.inf if value is None else -value if metric == "perplexity" else value


def _final_metrics(runs: list[Run]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in runs:
        last: dict[str, Any] = next((m["metrics"] for m in reversed(run.metrics) if m.get("metrics")), {})
        for name, value in last.items():
            found.setdefault(name, []).extend([value] if value is not None else [])
    return {name: values for name, values in found.items() if values}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


# ---- tables


def number(value: float | None, unit: float = 1, digits: int = 3) -> str:
    """Format ``value / unit`` with three significant digits and no exponent: 1234, 38.1, 4.02, 0.00310."""
    if value is None or value == 0 or not math.isfinite(value):
        return "-" if value is None else f"{value:.0f}"
    return f"{value / unit:.{max(0, digits - 1 - math.floor(math.log10(abs(value / unit))))}f}"


def accuracy_text(value: float | None, spread: float | None = None) -> str:
    """Format an accuracy as .8968, or .8968 ± .0014."""
    if value is None:
        return "-"
    text = f"{value:.4f}".removeprefix("0")
    return text if spread is None else f"{text} ± {accuracy_text(spread)}"


def duration(time_s: float) -> str:
    """Format seconds as s, min or h."""
    unit, name = (1, "s") if time_s <= 120 else (60, "min") if time_s <= 7200 else (3600, "h")
    return f"{number(time_s, unit)} {name}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


_COLUMNS: dict[str, Callable[[Row], str]] = {  # report.html.jinja explains them
    "run": lambda row: row.label,
    "test accuracy": lambda row: accuracy_text(row.accuracy, row.accuracy_spread),  # first: a narrow screen shows it
    "test loss": lambda row: number(row.loss, digits=4),
    "seeds": lambda row: str(row.num_runs),
    "rounds": lambda row: str(row.rounds),
    "local steps": lambda row: "-" if row.local_steps is None else str(row.local_steps),
    "bytes due, MB": lambda row: number(row.bytes_due, 1e6),
    "bytes sent, MB": lambda row: number(row.bytes_sent, 1e6),
    "compute, TFLOP": lambda row: number(row.flop, 1e12),
    "memory, MB": lambda row: number(row.memory_bytes, 1e6),
    "time": lambda row: duration(row.time_s),
    "outside": lambda row: _percent(row.outside_share),
    "seen": lambda row: _percent(row.exposure),
    "epsilon": lambda row: number(row.epsilon),
}


def table_lines(rows: Sequence[Row], skip: Sequence[str] = ()) -> list[list[str]]:
    """Return the titles, then the cells of each row; columns without any value are left out."""
    columns: dict[str, list[str]] = {}
    for title, text in _COLUMNS.items():
        if title not in skip:
            columns[title] = [text(row) for row in rows]
        if title == "test accuracy":
            names = dict.fromkeys(name for row in rows for name in row.metrics)
            columns |= {n: [accuracy_text(r.metrics.get(n), r.metric_spreads.get(n)) for r in rows] for n in names}
    shown = {title: cells for title, cells in columns.items() if any(cell != "-" for cell in cells)}
    return [list(shown), *(list(line) for line in zip(*shown.values(), strict=True))]


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    titles, *lines = table_lines(rows)
    return markdown_table(titles, lines, left=titles[:1])


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """Return a Markdown table; columns are aligned to the right, except those whose title is in ``left``."""
    rule = ["---" if title in left else "---:" for title in titles]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (titles, rule, *lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def to_rich(rows: Sequence[Row]) -> "Table":
    """Return the rows as a table for a terminal, with the most important columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    loss = [] if all(row.accuracy is None for row in rows) else ["test loss"]
    titles, *lines = table_lines(rows, skip=["seeds", "rounds", "bytes sent, MB", "seen", *loss])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column(titles[0], overflow="fold", min_width=12, vertical="bottom")
    for title in titles[1:]:
        table.add_column(title.replace(", ", " ").replace(" ", "\n"), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))  # Text: labels are not parsed as markup
    return table


def run_label(row: Row, run: Run) -> str:
    """Return the label of one run in a row of several seeds."""
    return f"{row.label}, seed {run.config.get('seed', '?')}" if row.num_runs > 1 else row.label
