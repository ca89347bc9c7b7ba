"""Tables and pictures of runs, made from the files in their folders and from nothing else.

``comparison`` turns runs into rows, ``to_markdown`` and ``to_rich`` print them, ``write_report`` makes one
self-contained HTML page (its words are in report.html.jinja). Nothing here trains or evaluates.
"""

import json
import math
import os
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Metric = dict[str, Any]
Group = tuple["Row", list["Run"]]

_STAGES = {"local_s": "#33475B", "exchange_s": "#7F95AD", "evaluate_s": "#B9C6D3", "checkpoint_s": "#DEE5EC"}
_METRICS = ("round", "time_s", *_STAGES, "bytes_due", "bytes_sent", "flop", "train_loss", "loss", "accuracy")
_NOT_COMPARED = ("seed", "runtime", "versions")  # runs that differ only in these are one row
# Okabe and Ito's palette, safe for colour-blind readers; the usual four methods look the same in every report.
_COLOURS = {"ist": "#0072B2", "local_sgd": "#D55E00", "narrow": "#009E73", "single": "#555555"}
_MORE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D1F")
_MOST_POINTS, _MOST_AXES = 400, 12


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
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("method"), str):
        got = repr(config["method"]) if "method" in config else "no such key"
        raise ReportError(f"{folder / 'config.json'} 'method': expected a name, got {got}; is this a run folder?")
    units, summary = (
        _read_json(folder / name) if (folder / name).exists() else {} for name in ("units.json", "summary.json")
    )
    return Run(folder, config, _read_metrics(folder / "metrics.jsonl"), units, summary)


def load_runs(folder: Path) -> list[Run]:
    """Read the run in ``folder``, or else the runs in its subfolders, sorted by name."""
    if (folder / "config.json").exists():
        return [load_run(folder)]
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise ReportError(f"{folder}: expected config.json here or one folder down, got none; name a folder of runs")
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
            expected = f"a JSON object with {missing[0]!r}"
            raise ReportError(f"{path} line {number}: expected {expected}, got {line[:40]!r}; remove or mend the line")
        metrics.append(metric)
    return metrics


# ---- from runs to rows


def comparison(runs: Sequence[Run]) -> list[Row]:
    """Return one row for each setting, in order of first appearance; the seeds of one setting are averaged."""
    return [row for row, _ in _grouped(runs)]


def _grouped(runs: Sequence[Run]) -> list[Group]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.config["method"], _flat(run.config)], sort_keys=True), []).append(run)
    labels = _labels([group[0].config for group in groups.values()])
    return [(_row(label, group), group) for label, group in zip(labels, groups.values(), strict=True)]


def _labels(configs: list[dict[str, Any]]) -> list[str]:
    """The method of each, and the settings in which it differs from others of the same method."""
    labels = []
    for config in configs:
        mine, peers = _flat(config), [_flat(peer) for peer in configs if peer["method"] == config["method"]]
        keys = dict.fromkeys(["local_steps", *(key for peer in peers for key in peer)])
        differ = [key for key in keys if len({peer.get(key) for peer in peers}) > 1]
        brief = [key for key in differ if key != "rounds"]  # has its own column and mostly follows from the steps
        if len({tuple(peer.get(key) for key in brief) for peer in peers}) == len(peers):
            differ = brief
        words = {key: f"{key.rpartition('.')[2].replace('_', ' ')} {mine[key]}" for key in differ if key in mine}
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
        memory_bytes=_mean([sum(memory.values()) for run in runs if (memory := run.summary.get("memory_bytes"))]),
        time_s=time_s,
        outside_share=1 - total("local_s", runs) / time_s if time_s > 0 else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


# ---- tables


def _number(value: float | None, unit: float = 1, digits: int = 3) -> str:
    """Three significant digits, never an exponent: 1234, 38.1, 4.02, 0.00310."""
    if value is None or value == 0 or not math.isfinite(value):
        return "–" if value is None else f"{value:.0f}"
    return f"{value / unit:.{max(0, digits - 1 - math.floor(math.log10(abs(value / unit))))}f}"


def _accuracy(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}".removeprefix("0")
    return text if spread is None else f"{text} ± {_accuracy(spread)}"


def _clock(time_s: float) -> tuple[float, str]:
    """The unit in which a duration reads best."""
    return next((unit, name) for most, unit, name in ((120, 1, "s"), (7200, 60, "min"), (math.inf, 3600, "h")) if time_s <= most)


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (  # what each means is said in report.html.jinja
    ("run", lambda row: row.label),
    ("seeds", lambda row: str(row.num_runs)),
    ("rounds × steps", lambda row: f"{row.rounds} × {row.local_steps or '–'}"),
    ("test accuracy", lambda row: _accuracy(row.accuracy, row.accuracy_spread)),
    ("test loss", lambda row: _number(row.loss, digits=4)),
    ("bytes due, MB", lambda row: _number(row.bytes_due, 1e6)),
    ("bytes sent, MB", lambda row: _number(row.bytes_sent, 1e6)),
    ("compute, TFLOP", lambda row: _number(row.flop, 1e12)),
    ("memory, MB", lambda row: _number(row.memory_bytes, 1e6)),
    ("time", lambda row: f"{_number(row.time_s, _clock(row.time_s)[0])} {_clock(row.time_s)[1]}"),
    ("outside", lambda row: "–" if row.outside_share is None else f"{row.outside_share:.0%}"),
)


def _table(rows: Sequence[Row]) -> list[list[str]]:
    """Titles, then cells; columns in which no row has a value are left out."""
    lines = [[title for title, _ in _COLUMNS], *([text(row) for _, text in _COLUMNS] for row in rows)]
    shown = [any(cell != "–" for cell in cells) for cells in zip(*lines[1:], strict=True)]
    return [[cell for cell, show in zip(line, shown, strict=True) if show] for line in lines] if rows else lines


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table for a README."""
    titles, *lines = _table(rows)
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in [titles, rule, *lines])


def to_rich(rows: Sequence[Row]) -> "Table":
    """Return the rows as a table for ``rich.print``."""
    from rich.table import Column, Table
    from rich.text import Text

    titles, *lines = _table(rows)
    table = Table(*(Column(title, justify="right" if index else "left") for index, title in enumerate(titles)))
    for line in lines:
        table.add_row(*map(Text, line))  # Text: a label is never read as markup
    return table


# ---- the page


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html``, one self-contained page about the run or runs in ``folder``, and return its path.

    Raises:
        ReportError: no run here, a broken file, or matplotlib or jinja2 missing.
    """
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        raise ReportError(
            f"write_report: expected matplotlib and jinja2, got no {error.name!r}; pip install 'skerry[report]'"
        ) from error
    runs = load_runs(folder)
    groups = _grouped(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "accuracy": _accuracy}
    with matplotlib.rc_context(_STYLE):  # undone at once: a caller's own figures keep their look
        pictures, units = _pictures(groups), _unit_pictures(groups)
    html = environment.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        recipe=", ".join(dict.fromkeys(str(run.config.get("recipe", run.folder.resolve().name)) for run in runs)),
        rows=[row for row, _ in groups],
        runs=runs,
        table=_table([row for row, _ in groups]),
        pictures=pictures,
        units=units,
        refused=[(run.folder.resolve().name, m["round"], m["refused"]) for run in runs for m in run.metrics if m.get("refused")],
        settings=_settings(groups),
        versions=dict.fromkeys(f"{key} {v}" for run in runs for key, v in run.config.get("versions", {}).items()),
    )
    path, half = folder / "report.html", folder / f".report-{os.getpid()}.html"
    try:
        half.write_text(html, encoding="utf-8")
        os.replace(half, path)  # a reader sees the old page or the new one, never half of one
    finally:
        half.unlink(missing_ok=True)
    return path


def _settings(groups: list[Group]) -> list[tuple[str, list[str]]]:
    """Each setting with its value in every row, or with one value where all rows agree."""
    columns = []
    for row, runs in groups:
        column = {"method": row.method}
        for key in ("seed", "runtime"):
            column[key] = ", ".join(dict.fromkeys(str(run.config.get(key, "–")) for run in runs))
        column |= _flat(runs[0].config)
        column |= {f"parameters, {key}": f"{n:,}" for key, n in runs[0].summary.get("parameters", {}).items()}
        column |= {f"memory, {key}": f"{_number(n, 1e6)} MB" for key, n in runs[0].summary.get("memory_bytes", {}).items()}
        columns.append(column)
    keys = dict.fromkeys(key for column in columns for key in column)
    lines = [(key, [column.get(key, "–") for column in columns]) for key in keys]
    return [(key, values[:1] if len(set(values)) == 1 else values) for key, values in lines]


# ---- pictures

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "text.parse_math": False,  # a "$" in a recipe's name is a "$"
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "#8A94A0",
    "axes.labelcolor": "#3A424C",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9ECEF",
    "text.color": "#1D2126",
    "xtick.color": "#59636E",
    "ytick.color": "#59636E",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def _svg(figure: "Figure") -> str:
    """The figure as markup to be set inside a page: no header, no names of groups, no links."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    return re.sub(r' (xmlns(:xlink)?="[^"]*"|(width|height)="[\d.]+pt")', "", svg)


def _pictures(groups: list[Group]) -> dict[str, str]:
    evaluated = any(row.accuracy is not None for row, _ in groups)
    score, name = ("accuracy", "test accuracy") if evaluated else ("loss", "test loss")
    curves: dict[str, tuple[str, Callable[[Metric], float], str, str]] = {
        "rounds": ("rounds", lambda m: m["round"] + 1, score, name),
        "compute": ("compute, TFLOP a worker", lambda m: m["flop"] / 1e12, score, name),
        "bytes": ("bytes due, MB a worker (log scale)", lambda m: m["bytes_due"] / 1e6, score, name),
        "train_loss": ("rounds", lambda m: m["round"] + 1, "train_loss", "training loss"),
    }
    return {key: _svg(_draw_curves(groups, *curve, log=key == "bytes")) for key, curve in curves.items()} | {
        "time": _svg(_draw_times(groups))
    }


def _curve(runs: list[Run], x: Callable[[Metric], float], y: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """[points, 2]: the mean over ``runs`` at the rounds where each of them has a value."""
    tables = [{m["round"]: (x(m), m[y]) for m in run.metrics if m[y] is not None} for run in runs]
    rounds = sorted(set.intersection(*(set(table) for table in tables)))
    points = np.array([[table[r] for table in tables] for r in rounds], dtype=np.float64).reshape(-1, len(runs), 2)
    points[~np.isfinite(points)] = np.nan
    some = np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).round().astype(np.int64)
    return points.mean(axis=1)[some]


def _looks(groups: list[Group]) -> list[tuple[str, str]]:
    """For each row a colour, the same for all rows of a method, and a line style that tells those apart."""
    more, styles = cycle(_MORE_COLOURS), ("-", "--", "-.", ":")
    methods = [row.method for row, _ in groups]
    colours = {method: _COLOURS.get(method) or next(more) for method in dict.fromkeys(methods)}
    return [(colours[each], styles[methods[:index].count(each) % 4]) for index, each in enumerate(methods)]


def _draw_curves(
    groups: list[Group], xlabel: str, x: Callable[[Metric], float], y: str, ylabel: str, log: bool
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
    heights, ends = [], []
    for (row, runs), (colour, dashes) in zip(groups, _looks(groups), strict=True):
        mean = _curve(runs, x, y)
        if not np.isfinite(mean).all(axis=1).any():
            continue
        end = mean[np.isfinite(mean).all(axis=1)][-1]
        look = {"color": colour, "linestyle": dashes}
        if log and end[0] <= 0:  # it exchanges nothing and so has no place on a log axis: show its level
            axes.axhline(end[1], linewidth=1.2, **look)
            end, mean = np.array([np.nan, end[1]]), mean[-1:]
        else:
            for curve in [_curve([run], x, y) for run in runs] if len(runs) > 1 else []:
                axes.plot(*curve.T, linewidth=0.7, alpha=0.4, **look)
            axes.plot(*mean.T, linewidth=1.8, marker="o" if len(mean) < 12 else "", markersize=3, **look)
        heights.append(mean[len(mean) // 8 :, 1])
        ends.append((row.label, end, look))
    if not ends:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", transform=axes.transAxes)
        return figure
    low, high = np.nanmin(np.concatenate(heights)), np.nanmax(np.concatenate(heights))
    pad = 0.05 * (high - low) or 0.01
    axes.set_ylim(low - pad, high + pad)  # the first steep steps may start outside
    if log:
        first, last = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if last > 300 * first else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(groups) > 1:
        _name_ends(axes, ends)
    return figure


def _name_ends(axes: "Axes", ends: list[tuple[str, Any, dict[str, Any]]]) -> None:
    """Write each curve's name beside the axes at the height of its end, pushed apart where names would touch."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: float(end[1][1]))
    names = [textwrap.fill(label, 18) for label, _, _ in ends]
    sizes = [0.02 + 0.065 * (1 + name.count("\n")) for name in names]
    at = [min(max((float(end[1]) - low) / (high - low), 0.0), 1.0) for _, end, _ in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + (sizes[i - 1] + sizes[i]) / 2)
    at[-1] = min(at[-1], 1.0)
    for i in range(len(at) - 1, 0, -1):
        at[i - 1] = min(at[i - 1], at[i] - (sizes[i - 1] + sizes[i]) / 2)
    for name, height, (_, (x, y), look) in zip(names, at, ends, strict=True):
        point, system = ((1, y), axes.get_yaxis_transform()) if np.isnan(x) else ((x, y), axes.transData)
        line = {"arrowstyle": "-", "color": look["color"], "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", point, (1.03, height), system, axes.transAxes, arrowprops=line, annotation_clip=False)
        axes.plot([1.03, 1.08], [height] * 2, transform=axes.transAxes, clip_on=False, linewidth=1.8, **look)
        axes.text(1.1, height, name, transform=axes.transAxes, va="center", linespacing=1.0)


def _draw_times(groups: list[Group]) -> "Figure":
    """A bar for each run, cut into what its wall clock was spent on."""
    from matplotlib.figure import Figure

    runs = [(row, run) for row, runs in groups for run in runs if run.metrics]
    unit, unit_name = _clock(max((run.metrics[-1]["time_s"] for _, run in runs), default=0.0))
    figure = Figure(figsize=(4.6, 0.9 + 0.22 * max(3, len(runs))), layout="constrained")
    axes = figure.add_subplot(xlabel=f"wall clock, {unit_name}")
    ends = {stage: np.array([run.metrics[-1][stage] / unit for _, run in runs]) for stage in (*_STAGES, "time_s")}
    left = np.zeros(len(runs))
    for stage, colour in _STAGES.items():
        name = "local steps" if stage == "local_s" else stage.removesuffix("_s")
        axes.barh(range(len(runs)), ends[stage], left=left, color=colour, height=0.7, label=name)
        left = left + ends[stage]
    rest = np.maximum(ends["time_s"] - left, 0)
    axes.barh(range(len(runs)), rest, left=left, height=0.7, facecolor="white", edgecolor="#B9C6D3", label="rest")
    names = [row.label + (f", seed {run.config.get('seed', '?')}" if row.num_runs > 1 else "") for row, run in runs]
    axes.set_yticks(range(len(runs)), [textwrap.fill(name, 30) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=5, columnspacing=1, handlelength=1, handletextpad=0.4)
    return figure


def _unit_pictures(groups: list[Group]) -> list[tuple[str, str]]:
    """For the first run of each row that dealt units out: its name, and how often each unit was trained."""
    found = [(row, runs[0], [axis for axis in runs[0].units.get("axes", []) if axis["counts"]]) for row, runs in groups]
    return [
        (row.label + (f", seed {run.config.get('seed', '?')}" if row.num_runs > 1 else ""), _svg(_draw_units(axes)))
        for row, run, axes in found
        if axes
    ]


def _draw_units(unit_axes: list[dict[str, Any]]) -> "Figure":
    """Each axis as a map (units in reading order, in lines of 64 or more) beside a histogram of the same counts."""
    from matplotlib.figure import Figure

    chosen = sorted(unit_axes, key=lambda axis: np.ptp(axis["counts"]), reverse=True)[:_MOST_AXES]
    low, high = (choose(choose(axis["counts"]) for axis in chosen) for choose in (min, max))
    figure = Figure(figsize=(4.6, 0.3 + 1.05 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=(3, 1.3))
    bins = np.unique(np.linspace(low, high + 1, 25).round()) - 0.5
    for axis, (heat, bars) in zip((axis for axis in unit_axes if axis in chosen), grid, strict=True):
        counts = np.array(axis["counts"], dtype=np.float64)
        wide = min(len(counts), max(64, math.isqrt(8 * len(counts))))
        lines = np.append(counts, [np.nan] * (-len(counts) % wide)).reshape(-1, wide)
        picture = heat.imshow(lines, aspect="auto", cmap="cividis", vmin=low, vmax=max(high, low + 1), interpolation="nearest")
        heat.set_axis_off()
        never = f", {(counts == 0).sum()} never" if (counts == 0).any() else ""
        title = f"{axis['name']}: {len(counts)} {axis['kind']}, {min(counts):.0f} to {max(counts):.0f} times{never}"
        heat.set_title(title, loc="left", fontsize=9)
        bars.hist(counts, bins=bins, color="#7F95AD")
        bars.set_yticks([])
        bars.spines["left"].set_visible(False)
    figure.colorbar(picture, ax=list(grid[:, 0]), location="bottom", label="times trained", aspect=40)
    return figure
