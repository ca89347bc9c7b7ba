"""Draws docs/how-it-works.svg: one wide network, dealt out, trained apart, put together.

.venv/bin/python docs/picture.py
"""

from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B8860B")  # one per worker
INK, FAINT = "#1D2126", "#C4CBD3"
HIDDEN, ENDS = 8, 3


def network(axes: Axes, left: float, top: float, owners: list[int], colours: dict[int, str], gap: float) -> None:
    """Draw input, two hidden layers (unit k held by ``owners[k]``) and output; only links within a holder are solid."""
    columns = []
    for depth in range(4):
        units = [-1] * ENDS if depth in (0, 3) else owners if depth == 1 else owners[::-1]
        middle = top - gap * (HIDDEN - 1) / 2
        columns.append(
            [(left + 0.62 * depth, middle + gap * ((len(units) - 1) / 2 - k), unit) for k, unit in enumerate(units)]
        )
    for one, two in pairwise(columns):
        for x1, y1, a in one:
            for x2, y2, b in two:
                holder = a if b == -1 else b if a == -1 else a if a == b else None
                if holder is not None:
                    axes.plot([x1, x2], [y1, y2], color=colours[holder], linewidth=0.8, zorder=1)
                else:
                    axes.plot([x1, x2], [y1, y2], color=FAINT, linewidth=0.25, zorder=0)
    for column in columns:
        for x, y, unit in column:
            axes.plot(x, y, "o", color=INK if unit == -1 else colours[unit], markersize=6, zorder=2)


def main() -> None:
    """Draw it."""
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "skerry", "font.size": 10, "font.family": "sans-serif"}
    )
    figure = Figure(figsize=(9.6, 3.5))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 9.6), ylim=(0, 3.5))
    axes.set_axis_off()
    all_colours = dict(enumerate(COLOURS))
    before, after = [0, 2, 1, 3, 0, 1, 3, 2], [1, 3, 0, 2, 2, 0, 1, 3]

    network(axes, 0.35, 2.9, before, all_colours, 0.3)
    for worker in range(4):
        x, y = 3.35 + 1.75 * (worker % 2), (3.2, 1.75)[worker // 2]
        small = [worker] * 2
        columns = [
            [(x + 0.36 * d, y - 0.6 + 0.3 * ((n - 1) / 2 - k)) for k in range(n)] for d, n in enumerate((3, 2, 2, 3))
        ]
        for one, two in pairwise(columns):
            for a in one:
                for b in two:
                    axes.plot([a[0], b[0]], [a[1], b[1]], color=COLOURS[small[0]], linewidth=0.8, zorder=1)
        for d, column in enumerate(columns):
            for px, py in column:
                axes.plot(px, py, "o", color=INK if d in (0, 3) else COLOURS[worker], markersize=5, zorder=2)
        axes.text(
            x + 0.54, y - 0.1, f"worker {worker + 1}, its own data", ha="center", color=COLOURS[worker], fontsize=9
        )
    network(axes, 7.35, 2.9, after, all_colours, 0.3)

    for x in (2.62, 6.72):
        axes.annotate("", (x + 0.42, 1.85), (x, 1.85), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4})
    for x, text in (
        (1.28, "1  deal the units out"),
        (4.75, "2  train small dense nets, no traffic"),
        (8.28, "3  put together, deal anew"),
    ):
        axes.text(x, 0.28, text, ha="center", color=INK, weight="bold", fontsize=9)
    figure.savefig(Path(__file__).with_name("how-it-works.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
