"""The picture of a finding, as a PNG file."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.experiments.reports.pictures import set_style
from skerry.experiments.theory.frame.verdict import Finding

if TYPE_CHECKING:
    from matplotlib.axis import Axis

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_LINES = ("solid", "dashed", "dotted", "dashdot")


def draw(finding: Finding, path: Path) -> None:
    """Write the picture of ``finding`` to ``path``, its panels side by side."""
    from matplotlib.figure import Figure

    set_style()
    figure = Figure(figsize=(5.8 * len(finding.panels), 3.4), layout="constrained")
    for place, panel in enumerate(finding.panels, start=1):
        axes = figure.add_subplot(1, len(finding.panels), place, xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.set_title(panel.title)
        axes.set_xscale("log" if "x" in panel.log else "linear")
        axes.set_yscale("log" if "y" in panel.log else "linear")
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            if name in panel.log:
                _number(axis, [value for curve in panel.curves for value in getattr(curve, name)])
        for curve, colour, line in zip(panel.curves, cycle(_COLOURS), cycle(_LINES), strict=False):
            dots = "o" if len(curve.x) < 12 else ""
            axes.plot(curve.x, curve.y, color=colour, linestyle=line, marker=dots, markersize=3, label=curve.label)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _number(axis: "Axis", values: Sequence[float]) -> None:
    """Plain numbers at a logarithmic axis, more of them where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [value for value in values if value > 0]
    wide = not positive or max(positive) > 30 * min(positive)
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
