"""The picture of a finding, as a PNG file."""

from itertools import cycle
from pathlib import Path

from skerry.experiments.reports.pictures import LINES, PALETTE, plain_log_axis, set_style
from skerry.experiments.theory.frame.verdict import Finding


def draw(finding: Finding, path: Path) -> None:
    """Draw the panels of ``finding`` side by side into the file ``path``."""
    from matplotlib.figure import Figure

    set_style()
    figure = Figure(figsize=(5.8 * len(finding.panels), 3.4), layout="constrained")
    for place, panel in enumerate(finding.panels, start=1):
        axes = figure.add_subplot(1, len(finding.panels), place, xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.set_title(panel.title)
        xs, ys = zip(*panel.curves.values(), strict=True)
        for name, axis, values in (("x", axes.xaxis, xs), ("y", axes.yaxis, ys)):
            if name in panel.log:
                getattr(axes, f"set_{name}scale")("log")
                positive = [float(v) for curve in values for v in curve if v > 0] or [1.0, 1e9]
                plain_log_axis(axis, (1,) if max(positive) > 30 * min(positive) else (1, 2, 5))
        for (label, (x, y)), colour, line in zip(panel.curves.items(), cycle(PALETTE), cycle(LINES), strict=False):
            dots = "o" if len(x) < 12 else ""
            axes.plot(x, y, color=colour, linestyle=line, marker=dots, markersize=3, label=label)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
