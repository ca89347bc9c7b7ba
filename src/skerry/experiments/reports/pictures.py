"""Pictures of runs, drawn with matplotlib: SVG to embed in a page, and PNG files."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skerry.experiments.reports.comparison import Group, Metric, Run, rank, run_label
from skerry.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's colours, safe for colour-blind readers."""

LINES = ("solid", "dashed", "dotted", "dashdot")

# The usual methods look the same in every report.
_COLOURS = {
    "ist": "#56B4E9", "relay": "#0072B2", "narrow": "#009E73", "ensemble": "#CC79A7", "local_sgd": "#D55E00",
    "single": "#555555",
}  # fmt: skip
_MORE_COLOURS = ("#E69F00", "#B8860B", "#7A5195", "#8C6D1F", "#A65E7A")
_MOST_POINTS, _MOST_AXES = 60, 12
_NOISY = {
    "train_loss": "training loss",
    "dispersion": "disagreement, part of the outputs",
    "drift": "drift (1: as far apart as forward)",
}
"""Values that are averaged over stretches of rounds, and the labels of their axes."""


def set_style() -> None:
    """Set matplotlib's style for all pictures of Skerry, globally; wrap it in ``rc_context`` to restore the old one."""
    from matplotlib import rc, rcdefaults

    rcdefaults()
    rc("svg", fonttype="none")  # text stays text, in the reader's font
    rc("text", parse_math=False, color="#1D2126")  # a "$" in a recipe's name is a "$"
    rc("font", size=9)
    rc("axes", grid=True, axisbelow=True, labelsize=9, titlesize=9, titlelocation="left", edgecolor="#8A94A0")
    rc("axes.spines", top=False, right=False)
    rc("grid", color="#E9ECEF")
    rc("xtick", color="#59636E")
    rc("ytick", color="#59636E")
    rc("xtick.major", size=0)
    rc("ytick.major", size=0)


def plain_log_axis(axis: "Axis", digits: Sequence[int]) -> None:
    """Label a logarithmic axis with plain numbers that begin with one of ``digits``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: "Figure", salt: str) -> str:
    """Return the figure as markup to embed in a page: unique ids, no links, as wide as its container."""
    from matplotlib import rc_context

    text, omitted = StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))  # they contain links
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata=omitted)
    svg = re.sub(r'<g id="[^"]*"', "<g", text.getvalue())
    return re.sub(r' (xmlns(:xlink)?="[^"]*"|(width|height)="[\d.]+pt")', "", svg[svg.index("<svg") :])


def looks(groups: list[Group]) -> list[dict[str, Any]]:
    """Return the colour and line style of each row: one colour per method, a line style for each of its rows."""
    more, seen = cycle(_MORE_COLOURS), dict[str, tuple[str, Iterator[str]]]()
    for row, _ in groups:
        if row.method not in seen:
            seen[row.method] = (_COLOURS.get(row.method) or next(more), cycle(LINES))
    return [{"color": seen[row.method][0], "linestyle": next(seen[row.method][1])} for row, _ in groups]


def curve_pictures(groups: list[Group]) -> dict[str, str]:
    """Return the SVG of each picture with curves, by name: rounds, compute, bytes, train_loss, dispersion, drift."""
    score = "accuracy" if any(row.accuracy is not None for row, _ in groups) else "loss"
    flop, unit = (1e12, "TFLOP") if any(row.flop > 1e11 for row, _ in groups) else (1e9, "GFLOP")
    curves: dict[str, tuple[str, str, Callable[[Metric], float]]] = {
        "rounds": (score, "rounds", lambda m: m["round"] + 1),
        "compute": (score, f"compute, {unit} per worker", lambda m: m["flop"] / flop),
        "bytes": (score, "bytes due, MB per worker (log scale)", lambda m: m["bytes_due"] / 1e6),
        "train_loss": ("train_loss", "rounds", lambda m: m["round"] + 1),
    }
    seen = [m for _, runs in groups for run in runs for m in run.metrics]
    for name in ("dispersion", "drift"):
        if any(_value(m, name) is not None for m in seen):
            curves[name] = (name, "rounds", lambda m: m["round"] + 1)
    if not any(row.bytes_due for row, _ in groups):
        del curves["bytes"]
    figures = {name: _draw_curves(groups, *curve, log=name == "bytes") for name, curve in curves.items()}
    return {name: _svg(figure, name) for name, figure in figures.items()}


def _value(metric: Metric, name: str) -> float | None:
    """Return a value of the round or of its diagnosis; None if it was not measured."""
    value: float | None = metric[name] if name in metric else metric.get("diagnosis", {}).get(name)
    return value


def _curve(runs: list[Run], x: Callable[[Metric], float], y: str) -> "NDArray[np.float64]":
    """Return [points, 2]: the mean over ``runs`` at the rounds where each of them has a value.

    More than ``_MOST_POINTS`` are thinned out: the last of each stretch is kept, or for noisy values their mean.
    """
    rows = [
        {m["round"]: (x(m), _value(m, y)) for m in run.metrics if _value(m, y) is not None}
        for run in runs
        if run.metrics
    ]
    rounds = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    values = np.array([[row[r] for row in rows] for r in rounds], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    mean = values.reshape(-1, max(1, len(rows)), 2).mean(axis=1)
    parts = np.array_split(mean, min(len(mean), _MOST_POINTS)) if len(mean) else []
    thin = [(part[-1, 0], part[:, 1].mean() if y in _NOISY else part[-1, 1]) for part in parts]
    return np.array(thin, dtype=np.float64).reshape(-1, 2)


def _draw_curves(groups: list[Group], y: str, xlabel: str, x: Callable[[Metric], float], log: bool) -> "Figure":
    from matplotlib.figure import Figure

    ylabel = _NOISY.get(y, f"test {y}")
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
    heights, ends = [], []
    for (row, runs), look in zip(groups, looks(groups), strict=True):
        mean = _curve(runs, x, y)
        known = mean[np.isfinite(mean).all(axis=1)]
        if not len(known):
            continue
        end = (float(known[-1, 0]), float(known[-1, 1]))
        if log and end[0] <= 0:  # no exchange, so no place on a log axis: draw a level line
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
        plain_log_axis(axes.xaxis, (1, 3) if last > 30 * first else (1, 2, 5))
    if len(groups) > 1:
        _name_ends(axes, ends)
    return figure


def _name_ends(axes: "Axes", ends: list[tuple[str, tuple[float, float], dict[str, Any]]]) -> None:
    """Write each curve's name beside the axes, as close to the height of its end as other names allow."""
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


def unit_pictures(groups: list[Group]) -> list[tuple[str, int, str]]:
    """Return, for the first run of each row: its label, the least number of times a unit was trained, and an SVG.

    The SVG is empty if all units were trained equally often.
    """
    found = []
    for row, runs in groups:
        label = run_label(row, runs[0])
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
    """Draw each axis as a map, units in reading order, beside a histogram of the same counts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6, 0.55 + 0.95 * len(unit_axes)), layout="constrained")
    grid = figure.subplots(len(unit_axes), 2, squeeze=False, width_ratios=(3, 1.3))
    bins = np.unique(np.linspace(low, high + 1, 25).round()) - 0.5
    for axis, (heat, bars) in zip(unit_axes, grid, strict=True):
        counts = np.array(axis["counts"], dtype=np.float64)
        least = max(64, math.isqrt(6 * len(counts)))  # units per line; lines of equal length if possible
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


def frontier_picture(points: dict[str, list[tuple[float, float, float]]], ylabel: str, out: Path) -> None:
    """Draw the frontier of each method: the best value it reaches with at most a given number of bytes.

    A method that sends nothing has no place on the log axis and is drawn as a dashed level line.

    Args:
        points: (bytes, value, spread) by method, sorted by bytes.
        ylabel: name of the value.
        out: the PNG file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    more = cycle((colour, marker) for marker in "os^" for colour in _MORE_COLOURS)
    best_so_far = np.maximum if rank(1.0, ylabel) > 0 else np.minimum
    with rc_context():
        set_style()
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for method, own in points.items():
            colour, marker = (_COLOURS[method], "o") if method in _COLOURS else next(more)
            sent = [(x / 1e6, y, spread) for x, y, spread in own if x > 0]
            for _, y, _ in (point for point in own if point[0] == 0):
                axes.axhline(y, color=colour, linestyle="dashed", linewidth=1, label=f"{method} (sends nothing)")
            if not sent:
                continue
            xs, ys, spreads = zip(*sent, strict=True)
            axes.errorbar(xs, ys, yerr=spreads, fmt=marker, markersize=4, color=colour, elinewidth=1, label=method)
            axes.step(xs, best_so_far.accumulate(ys), where="post", color=colour, linewidth=1.2, alpha=0.7)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        # The first digits of the labels between powers of ten.
        between = "123456789" if high / low < 3 else "25" if high / low < 1e3 else ""
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the style turns math off
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in between else "")
        axes.set_xlabel("MB sent per worker")
        axes.set_ylabel(f"test {ylabel}")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        drawn = BytesIO()
        figure.savefig(drawn, format="png", dpi=130)
    atomic.write(out, drawn.getvalue())
