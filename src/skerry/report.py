"""Tables and pictures of runs, made from the files in their folders and from nothing else.

``comparison`` turns runs into rows, ``to_markdown`` and ``to_rich`` print them, ``write_report`` makes one
self-contained HTML page (its words are in report.html.jinja). Nothing here trains or evaluates.
"""

import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from rich.table import Table

Metric = dict[str, Any]
Group = tuple["Row", list["Run"]]

_TIMES = ("time_s", "local_s", "exchange_s", "evaluate_s", "checkpoint_s")
_METRICS = ("round", "train_loss", "loss", "accuracy", "refused", "bytes_due", "bytes_sent", "flop", *_TIMES)
_NOT_COMPARED = ("seed", "runtime", "versions")  # runs that differ only in these are one row
# Okabe and Ito's palette, safe for colour-blind readers; the usual methods look the same in every report.
_COLOURS = {"ist": "#0072B2", "local_sgd": "#D55E00", "narrow": "#009E73", "single": "#555555"}
_MORE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D1F")
_LINES = ("solid", "dashed", "dotted", "dashdot")  # tell rows of one method apart
_MOST_POINTS, _MOST_AXES = 60, 12


class ReportError(ValueError):
    """A run folder that cannot be reported, or a missing optional package."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds; ``units`` and ``summary`` are empty when their files do not exist (yet)."""

    folder: Path
    config: dict[str, Any]
    metrics: list[Metric]
    units: dict[str, Any]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def num_rounds(self) -> int:
        """Rounds finished so far."""
        return int(self.metrics[-1]["round"]) + 1 if self.metrics else 0


@dataclass(frozen=True)
class Row:
    """One line of a comparison: the mean over runs that differ only in their seed. Costs are a worker's."""

    label: str
    method: str
    local_steps: int | None
    rounds: int  # finished by every run of the row
    num_runs: int
    accuracy: float | None
    accuracy_spread: float | None  # sample standard deviation over the runs
    loss: float | None
    bytes_due: float
    bytes_sent: float
    flop: float
    memory_bytes: float | None
    time_s: float
    outside_share: float | None  # the part of time_s that was not spent in local steps


# ---- from files to runs


def load_run(folder: Path) -> Run:
    """Read one run folder; a half-written last line of metrics.jsonl (a killed run) is ignored."""
    config, path = _read_json(folder / "config.json"), folder / "config.json"
    if not isinstance(config.get("method"), str):
        got = repr(config["method"]) if "method" in config else "no such key"
        raise ReportError(f"{path} 'method': expected a name, got {got}; is this a run folder?")
    files = (folder / "units.json", folder / "summary.json")
    units, summary = (_read_json(file) if file.exists() else {} for file in files)
    return Run(folder, config, _read_metrics(folder / "metrics.jsonl"), units, summary)


def load_runs(folder: Path) -> list[Run]:
    """Read the run in ``folder``, or else the runs in its subfolders, sorted by name."""
    if (folder / "config.json").exists():
        return [load_run(folder)]
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise ReportError(f"{folder}: expected config.json here or in a subfolder, got none; name another")
    return [load_run(path) for path in found]


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


def comparison(runs: Sequence[Run]) -> list[Row]:
    """Return one row for each setting, averaged over seeds, methods in order of appearance."""
    return [row for row, _ in _grouped(runs)]


def _grouped(runs: Sequence[Run]) -> list[Group]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        setting = json.dumps([run.config["method"], _flat(run.config)], sort_keys=True)
        groups.setdefault(setting, []).append(run)
    methods = [run.config["method"] for run in runs]

    def place(group: list[Run]) -> tuple[int, int]:
        return methods.index(group[0].config["method"]), group[0].config.get("local_steps") or 0

    ordered = sorted(groups.values(), key=place)
    labels = _labels([group[0].config for group in ordered])
    return [(_row(label, group), group) for label, group in zip(labels, ordered, strict=True)]


def _labels(configs: list[dict[str, Any]]) -> list[str]:
    """The method of each, and the settings in which it differs from others of the same method."""
    labels = []
    for config in configs:
        mine, peers = _flat(config), [_flat(peer) for peer in configs if peer["method"] == config["method"]]
        keys = dict.fromkeys(["local_steps", *(key for peer in peers for key in peer)])
        differ = [key for key in keys if len({peer.get(key) for peer in peers}) > 1]
        brief = [key for key in differ if key != "rounds"]  # has its own column, often follows from the steps
        if len({tuple(peer.get(key) for key in brief) for peer in peers}) == len(peers):
            differ = brief
        words = {key: f"{key.split('.')[-1].replace('_', ' ')} {mine[key]}" for key in differ if key in mine}
        if "local_steps" in words:
            words["local_steps"] = f"{mine['local_steps']} steps"
        labels.append(", ".join([config["method"], *words.values()]))
    return labels


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"partition": {"reshuffle": 0.1}} -> {"partition.reshuffle": "0.1"}, without what is not compared."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value and (prefix or key not in _NOT_COMPARED):
            flat |= _flat(value, f"{prefix}{key}.")
        elif prefix or key not in (*_NOT_COMPARED, "method"):
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _row(label: str, runs: list[Run]) -> Row:
    def total(key: str, runs: list[Run]) -> float:
        return _mean([run.metrics[-1][key] for run in runs if run.metrics]) or 0.0

    def final(key: str) -> list[float]:
        values = [[m[key] for m in run.metrics if m[key] is not None] for run in runs]
        return [each[-1] for each in values if each]

    memories = [sum(run.summary["memory_bytes"].values()) for run in runs if run.summary.get("memory_bytes")]
    accuracies, time_s = final("accuracy"), total("time_s", runs)
    return Row(
        label=label,
        method=runs[0].config["method"],
        local_steps=runs[0].config.get("local_steps"),
        rounds=min(run.num_rounds for run in runs),
        num_runs=len(runs),
        accuracy=_mean(accuracies),
        accuracy_spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        loss=_mean(final("loss")),
        bytes_due=total("bytes_due", runs),
        bytes_sent=total("bytes_sent", [run for run in runs if run.config.get("runtime") != "serial"]),
        flop=total("flop", runs),
        memory_bytes=_mean(memories),
        time_s=time_s,
        outside_share=1 - total("local_s", runs) / time_s if time_s > 0 else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


# ---- tables


def _number(value: float | None, unit: float = 1, digits: int = 3) -> str:
    """Three significant digits, never an exponent: 1234, 38.1, 4.02, 0.00310."""
    if value is None or value == 0 or not math.isfinite(value):
        return "-" if value is None else f"{value:.0f}"
    return f"{value / unit:.{max(0, digits - 1 - math.floor(math.log10(abs(value / unit))))}f}"


def _accuracy(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}".removeprefix("0")
    return text if spread is None else f"{text} ± {_accuracy(spread)}"


def _duration(time_s: float) -> str:
    unit, name = (1, "s") if time_s <= 120 else (60, "min") if time_s <= 7200 else (3600, "h")
    return f"{_number(time_s, unit)} {name}"


_COLUMNS: dict[str, Callable[[Row], str]] = {  # what each means is said in report.html.jinja
    "run": lambda row: row.label,
    "seeds": lambda row: str(row.num_runs),
    "rounds": lambda row: str(row.rounds),
    "local steps": lambda row: "-" if row.local_steps is None else str(row.local_steps),
    "test accuracy": lambda row: _accuracy(row.accuracy, row.accuracy_spread),
    "test loss": lambda row: _number(row.loss, digits=4),
    "bytes due, MB": lambda row: _number(row.bytes_due, 1e6),
    "bytes sent, MB": lambda row: _number(row.bytes_sent, 1e6),
    "compute, TFLOP": lambda row: _number(row.flop, 1e12),
    "memory, MB": lambda row: _number(row.memory_bytes, 1e6),
    "time": lambda row: _duration(row.time_s),
    "outside": lambda row: "-" if row.outside_share is None else f"{row.outside_share:.0%}",
}


def _table(rows: Sequence[Row], skip: Sequence[str] = ()) -> list[list[str]]:
    """Titles, then cells; columns in which no row has a value are left out."""
    columns = {title: [text(row) for row in rows] for title, text in _COLUMNS.items() if title not in skip}
    shown = {title: cells for title, cells in columns.items() if any(cell != "-" for cell in cells)}
    return [list(shown), *(list(line) for line in zip(*shown.values(), strict=True))]


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table for a README."""
    titles, *lines = _table(rows)
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def to_rich(rows: Sequence[Row]) -> "Table":
    """Return the rows as a table for ``rich.print``, with the columns that fit a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    loss = [] if all(row.accuracy is None for row in rows) else ["test loss"]
    titles, *lines = _table(rows, skip=["seeds", "rounds", "bytes sent, MB", *loss])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column(titles[0], overflow="fold", min_width=12, vertical="bottom")
    for title in titles[1:]:
        table.add_column(title.replace(", ", " ").replace(" ", "\n"), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))  # Text: a label is never read as markup
    return table


# ---- the page


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html``, one self-contained page about the run or runs in ``folder``.

    Raises:
        ReportError: no run here, a broken file, or matplotlib or jinja2 missing.
    """
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        got = f"expected matplotlib and jinja2, got no {error.name}"
        raise ReportError(f"write_report: {got}; pip install 'skerry[report]'") from error
    runs = load_runs(folder)
    groups = _grouped(runs)
    with matplotlib.rc_context():  # undone at once: a caller's own figures keep their look
        _set_style()
        pictures, units = _pictures(groups), _unit_pictures(groups)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"number": _number, "accuracy": _accuracy, "duration": _duration}
    started = [(row, run) for row, runs in groups for run in runs if run.metrics]
    versions = [f"{key} {value}" for run in runs for key, value in run.config.get("versions", {}).items()]
    html = pages.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        recipe=", ".join(dict.fromkeys(str(run.config.get("recipe", run.name)) for run in runs)),
        runs=runs,
        rows=[row for row, _ in groups],
        table=_table([row for row, _ in groups]),
        looks=_looks(groups),
        pictures=pictures,
        units=units,
        times=[(_run_label(row, run), run.metrics[-1]) for row, run in started],
        refused=[(run.name, m["round"], m["refused"]) for run in runs for m in run.metrics if m["refused"]],
        settings=_settings(groups),
        versions=list(dict.fromkeys(versions)),
    )
    path, half = folder / "report.html", folder / f".report-{os.getpid()}.html"
    try:
        half.write_text(html, encoding="utf-8")
        os.replace(half, path)  # a reader sees the old page or the new one, never half of one
    finally:
        half.unlink(missing_ok=True)
    return path


def _run_label(row: Row, run: Run) -> str:
    return f"{row.label}, seed {run.config.get('seed', '?')}" if row.num_runs > 1 else row.label


def _settings(groups: list[Group]) -> list[tuple[str, list[str]]]:
    """Each setting with its value in every row, or with one value where all rows agree."""
    columns = []
    for row, runs in groups:
        column = {"method": row.method}
        for key in ("seed", "runtime"):
            column[key] = ", ".join(dict.fromkeys(str(run.config.get(key, "-")) for run in runs))
        column |= _flat(runs[0].config)
        sizes, memory = (runs[0].summary.get(key, {}) for key in ("parameters", "memory_bytes"))
        column |= {f"parameters, {key}": f"{count:,}" for key, count in sizes.items()}
        column |= {f"memory, {key}": f"{_number(num_bytes, 1e6)} MB" for key, num_bytes in memory.items()}
        columns.append(column)
    keys = dict.fromkeys(key for column in columns for key in column)
    lines = [(key, [column.get(key, "-") for column in columns]) for key in keys]
    return [(key, values[:1] if len(set(values)) == 1 else values) for key, values in lines]


# ---- pictures


def _set_style() -> None:
    from matplotlib import rc, rcdefaults

    rcdefaults()
    rc("svg", fonttype="none")  # text stays text, in the reader's own font
    rc("text", parse_math=False, color="#1D2126")  # a "$" in a recipe's name is a "$"
    rc("font", size=9)
    rc("axes", grid=True, axisbelow=True, labelsize=9, titlesize=9, titlelocation="left", edgecolor="#8A94A0")
    rc("axes.spines", top=False, right=False)
    rc("grid", color="#E9ECEF")
    rc("xtick", color="#59636E")
    rc("ytick", color="#59636E")
    rc("xtick.major", size=0)
    rc("ytick.major", size=0)


def _svg(figure: "Figure", salt: str) -> str:
    """The figure as markup to be set inside a page: its own ids, no links, as wide as its place."""
    from matplotlib import rc_context

    text, unsaid = StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))  # they come with links
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata=unsaid)
    svg = re.sub(r'<g id="[^"]*"', "<g", text.getvalue())
    return re.sub(r' (xmlns(:xlink)?="[^"]*"|(width|height)="[\d.]+pt")', "", svg[svg.index("<svg") :])


def _looks(groups: list[Group]) -> list[dict[str, Any]]:
    """For each row a colour, the same for all rows of a method, and a line style that tells those apart."""
    more, seen = cycle(_MORE_COLOURS), dict[str, tuple[str, Iterator[str]]]()
    for row, _ in groups:
        if row.method not in seen:
            seen[row.method] = (_COLOURS.get(row.method) or next(more), cycle(_LINES))
    return [{"color": seen[row.method][0], "linestyle": next(seen[row.method][1])} for row, _ in groups]


def _pictures(groups: list[Group]) -> dict[str, str]:
    score = "accuracy" if any(row.accuracy is not None for row, _ in groups) else "loss"
    flop, unit = (1e12, "TFLOP") if any(row.flop > 1e11 for row, _ in groups) else (1e9, "GFLOP")
    curves: dict[str, tuple[str, str, Callable[[Metric], float]]] = {
        "rounds": (score, "rounds", lambda m: m["round"] + 1),
        "compute": (score, f"compute, {unit} a worker", lambda m: m["flop"] / flop),
        "bytes": (score, "bytes due, MB a worker (log scale)", lambda m: m["bytes_due"] / 1e6),
        "train_loss": ("train_loss", "rounds", lambda m: m["round"] + 1),
    }
    if not any(row.bytes_due for row, _ in groups):
        del curves["bytes"]
    figures = {name: _draw_curves(groups, *curve, log=name == "bytes") for name, curve in curves.items()}
    return {name: _svg(figure, name) for name, figure in figures.items()}


def _curve(runs: list[Run], x: Callable[[Metric], float], y: str) -> "NDArray[np.float64]":
    """[points, 2]: the mean over ``runs`` at the rounds where each of them has a value.

    Of more than ``_MOST_POINTS`` the last of each stretch; but a training loss, which is noisy, is averaged.
    """
    rows = [{m["round"]: (x(m), m[y]) for m in run.metrics if m[y] is not None} for run in runs if run.metrics]
    rounds = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    values = np.array([[row[r] for row in rows] for r in rounds], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    mean = values.reshape(-1, max(1, len(rows)), 2).mean(axis=1)
    parts = np.array_split(mean, min(len(mean), _MOST_POINTS)) if len(mean) else []
    thin = [(part[-1, 0], part[:, 1].mean() if y == "train_loss" else part[-1, 1]) for part in parts]
    return np.array(thin, dtype=np.float64).reshape(-1, 2)


def _draw_curves(groups: list[Group], y: str, xlabel: str, x: Callable[[Metric], float], log: bool) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ylabel = "training loss" if y == "train_loss" else f"test {y}"
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
    heights, ends = [], []
    for (row, runs), look in zip(groups, _looks(groups), strict=True):
        mean = _curve(runs, x, y)
        known = mean[np.isfinite(mean).all(axis=1)]
        if not len(known):
            continue
        end = (float(known[-1, 0]), float(known[-1, 1]))
        if log and end[0] <= 0:  # it exchanges nothing and so has no place on a log axis: show its level
            axes.axhline(end[1], linewidth=1.2, **look)
            known, end = known[-1:], (math.inf, end[1])
        else:
            for curve in [_curve([run], x, y) for run in runs] if len(runs) > 1 else []:
                axes.plot(*curve[~(curve[:, 0] <= 0)].T, linewidth=0.7, alpha=0.4, **look)
            dots = "o" if len(mean) < 12 else ""
            axes.plot(*mean[~(mean[:, 0] <= 0)].T, linewidth=1.8, marker=dots, markersize=3, **look)
        heights.append(known[len(known) // 8 :, 1])
        ends.append((row.label, end, look))
    if not ends:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", transform=axes.transAxes)
        return figure
    low, high = np.concatenate(heights).min(), np.concatenate(heights).max()
    pad = 0.05 * (high - low) or 0.01
    axes.set_ylim(low - pad, high + pad)  # the first steep steps may start outside
    if log:
        first, last = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if last > 30 * first else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(groups) > 1:
        _name_ends(axes, ends)
    return figure


def _name_ends(axes: "Axes", ends: list[tuple[str, tuple[float, float], dict[str, Any]]]) -> None:
    """Write each curve's name beside the axes, at the height of its end or as near as other names allow."""
    (low, high), right = axes.get_ylim(), axes.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end[1][1])
    names = [label.replace(", ", "\n") for label, _, _ in ends]
    sizes = [0.02 + 0.06 * (1 + name.count("\n")) for name in names]
    at = [min(max((end[1] - low) / (high - low), 0.0), 1.0) for _, end, _ in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + (sizes[i - 1] + sizes[i]) / 2)
    at[-1] = min(at[-1], 1.0)
    for i in range(len(at) - 1, 0, -1):
        at[i - 1] = min(at[i - 1], at[i] - (sizes[i - 1] + sizes[i]) / 2)
    beside: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    for name, height, (_, (x, y), look) in zip(names, at, ends, strict=True):
        line, start = {"arrowstyle": "-", "color": look["color"], "lw": 0.6, "alpha": 0.4}, (min(x, right), y)
        axes.annotate("", start, (1.03, height), "data", axes.transAxes, line, annotation_clip=False)
        axes.plot([1.03, 1.09], [height, height], linewidth=1.8, **look, **beside)
        axes.text(1.11, height, name, va="center", linespacing=1.0, **beside)


def _unit_pictures(groups: list[Group]) -> list[tuple[str, int, str]]:
    """For the first run of each row: its name, how often each unit was trained, a picture if that differs."""
    found = []
    for row, runs in groups:
        label = _run_label(row, runs[0])
        axes = [axis for axis in runs[0].units.get("axes", []) if axis["counts"]]
        if len(axes) > _MOST_AXES:
            label += f", the {_MOST_AXES} most uneven of {len(axes)} axes"
            uneven = sorted(axes, key=lambda axis: min(axis["counts"]) - max(axis["counts"]))[:_MOST_AXES]
            axes = [axis for axis in axes if axis in uneven]
        if axes:
            low, high = min(min(axis["counts"]) for axis in axes), max(max(axis["counts"]) for axis in axes)
            found.append((label, low, _svg(_draw_units(axes, low, high), label) if low < high else ""))
    return found


def _draw_units(unit_axes: list[dict[str, Any]], low: int, high: int) -> "Figure":
    """Each axis as a map (units in reading order) beside a histogram of the same counts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6, 0.55 + 0.95 * len(unit_axes)), layout="constrained")
    grid = figure.subplots(len(unit_axes), 2, squeeze=False, width_ratios=(3, 1.3))
    bins = np.unique(np.linspace(low, high + 1, 25).round()) - 0.5
    for axis, (heat, bars) in zip(unit_axes, grid, strict=True):
        counts = np.array(axis["counts"], dtype=np.float64)
        least = max(64, math.isqrt(6 * len(counts)))  # units a line; even lines where that can be had
        wide = next((w for w in range(least, 2 * least + 1) if len(counts) % w == 0), min(least, len(counts)))
        lines = np.append(counts, [np.nan] * (-len(counts) % wide)).reshape(-1, wide)
        picture = heat.imshow(lines, "cividis", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
        heat.set_axis_off()
        never = f", {(counts == 0).sum()} of them never" if not counts.all() else ""
        times = f"{counts.min():.0f} to {counts.max():.0f} times{never}"
        heat.set_title(f"{axis['name']}: {len(counts)} {axis['kind']}, {times}")
        bars.hist(counts, bins=bins, color="#7F95AD")
        bars.set_yticks([])
        bars.spines["left"].set_visible(False)
        bars.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    bar = figure.colorbar(picture, ax=list(grid[:, 0]), location="bottom", label="times trained", aspect=40)
    bar.locator = MaxNLocator(5, integer=True)
    return figure
