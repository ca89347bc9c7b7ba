"""When does dealing pay? Subnets handed on (relay), one small net for all (narrow), nets that never meet (ensemble).

    SKERRY_DATA=... python bench/accuracy/when_dealing_pays.py            # finished runs are kept; table and picture
    SKERRY_DATA=... python bench/accuracy/when_dealing_pays.py --edges    # more rates where the best is at an edge
    python bench/accuracy/when_dealing_pays.py --report                   # table and picture from the run folders alone

From a base setting of two recipes one factor at a time is changed: training samples, labels, length of the training,
units per worker, label skew. At every point all three methods have the same number of rounds and local steps, and nets
of the same size per worker: the same operations and memory. There are at least as many rounds as workers, so that each
subnet reaches all of them. Rates are tried with seed 0. The best one, by the recipe's first metric on the test set, is
run with the other seeds. Two runs at a time, one thread each.

``narrow`` gains from averaging more often, for more bytes, and from an optimizer state that stays with its worker. It
has the better of two settings: the same number of rounds, or five times as many with a state that stays. With label
skew it also has the better of with and without priors.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rate_search import Key, Rates, Run, Settings, search

from skerry.experiments.reports.comparison import Group, accuracy_text, flat, grouped, load_runs, number
from skerry.experiments.reports.pictures import set_style
from skerry.experiments.reports.results_page import RATE, at_best_rate, main_metric, spread_of, value_of
from skerry.experiments.runs.execute import configure
from skerry.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS = 4
METHODS = ("relay", "narrow", "ensemble")
OFTEN = 5
"""``narrow-often`` has this many times the rounds."""
FRESH, STAY, TRAVEL = ({"optimizer_state": policy} for policy in ("reset", "stay", "travel"))
RUNS: Mapping[str, Mapping[str, Settings]] = {
    "fashion-mlp": {"relay": {}, "ensemble": {}, "narrow": FRESH, "narrow-often": STAY},
    # Fresh moments in each round cost Adam much.
    "depends-xc": {"relay": FRESH, "relay-travel": TRAVEL, "ensemble": {}, "narrow": STAY, "narrow-often": STAY},
}
UNADJUSTED: Mapping[str, Settings] = {
    "narrow-plain": {"prior_adjusted": False},
    "narrow-often-plain": STAY | {"prior_adjusted": False},
}
"""Also run with label skew."""
# "budget": the fraction of the recipe's steps.
BASE: Mapping[str, Settings] = {"fashion-mlp": {"budget": 0.2}, "depends-xc": {"budget": 0.2, "model.hidden": 64}}
USUAL_RATES = (0.05, 0.1)
RATES: Mapping[str, Mapping[str, Rates]] = {
    "fashion-mlp": {"relay": (0.1, 0.2), "ensemble": (0.1,)},
    "depends-xc": {"narrow-often": (0.02, 0.05), "ensemble": (0.1,)},
}


@dataclass(frozen=True)
class Point:
    """A setting in which the methods are compared: the base of the recipe with ``changes``."""

    recipe: str
    changes: Settings

    @property
    def name(self) -> str:
        """The name of its folder."""
        words = [f"{k.split('.')[-1]}{v}".replace(":", "") for k, v in self.changes.items()]
        return "-".join([self.recipe, *words])

    @property
    def runs(self) -> Mapping[str, Settings]:
        """The runs of this point, by name, and their settings."""
        return {**RUNS[self.recipe], **(UNADJUSTED if self.changes.get("prior_adjusted") else {})}

    def settings(self, name: str) -> Settings:
        """Return the settings of a run, without learning rate and seed; there is at least one round per worker."""
        changed = {**BASE[self.recipe], **self.changes}
        config = configure(self.recipe, "relay", {})
        steps = changed.pop("budget") * config.rounds * config.local_steps
        rounds = max(WORKERS, round(steps / config.local_steps)) * (OFTEN if "-often" in name else 1)
        settings = {"method": name.partition("-")[0], "workers": WORKERS, "eval_every": 0, "threads": 1}
        return {**settings, "rounds": rounds, "local_steps": round(steps / rounds), **changed, **self.runs[name]}


@dataclass(frozen=True)
class Factor:
    """What is varied: for each value, a number or a word, what it changes in the base."""

    name: str
    recipe: str
    values: Mapping[Any, Settings]

    @property
    def points(self) -> dict[Any, Point]:
        """The points, by value."""
        return {value: Point(self.recipe, changes) for value, changes in self.values.items()}


def length(recipe: str, budgets: Iterable[float]) -> Factor:
    """Return the factor for the length of the training, in local steps."""
    changes = [{} if b == BASE[recipe]["budget"] else {"budget": b} for b in budgets]
    settings = [Point(recipe, c).settings("relay") for c in changes]
    steps = [s["rounds"] * s["local_steps"] for s in settings]
    return Factor("local steps per worker", recipe, dict(zip(steps, changes, strict=True)))


def share(recipe: str, own: int, hidden: Iterable[int]) -> Factor:
    """Return the factor for a worker's units in each hidden layer; ``own``: hidden units of the base."""
    return Factor(
        "units per worker in a layer", recipe, {h // WORKERS: {"model.hidden": h} if h != own else {} for h in hidden}
    )


def factors(long: bool) -> list[Factor]:
    """Return all factors; ``long``: also train for the full length of one recipe and half that of the other."""
    fashion, depends = "fashion-mlp", "depends-xc"
    skews = {"Dir(1)": "dirichlet:1", "Dir(.3)": "dirichlet:0.3", "by label": "by_label"}
    skewed = {name: {"split": how, "prior_adjusted": True} for name, how in skews.items()}
    return [
        Factor("training samples", fashion, {n: {"data.samples": n} for n in (500, 2000, 8000)} | {60_000: {}}),
        length(fashion, (0.05, 0.2, *((1.0,) if long else ()))),
        share(fashion, 1024, (32, 128, 1024)),
        Factor("label skew", fashion, {"iid": {}} | skewed),
        Factor("labels", depends, {n: {"data.labels": n} for n in (100, 1000)} | {17_860: {}}),
        length(depends, (0.1, 0.2, *((0.5,) if long else ()))),
        share(depends, 64, (16, 64, 256)),
    ]


def run_points(points: Sequence[Point], options: argparse.Namespace) -> list[Key]:
    """Run everything that is not finished yet; return what failed."""
    of = {f"{point.name}/{run}": (point, run) for point in points for run in point.runs}
    rows = {name: (RATES[point.recipe].get(run, USUAL_RATES), options.seeds) for name, (point, run) in of.items()}

    def run_of(name: str, rate: float, seed: int) -> Run:
        point, run = of[name]
        settings = {**point.settings(run), RATE: rate, "seed": seed}
        return Run(point.recipe, options.out / f"{name}-lr{rate:g}-seed{seed}", settings)

    return search(rows, run_of, edges=options.edges, at_once=options.at_once)


@dataclass(frozen=True)
class Outcome:
    """What a method reached at a point, with the best of its learning rates; ``share``: units per worker in a layer."""

    metric: str
    value: float
    spread: float | None
    megabytes: float
    rate: float
    tried: Rates
    share: int

    def __str__(self) -> str:
        sign = "≤" if self.rate == min(self.tried) else "≥" if self.rate == max(self.tried) else ""
        return f"{accuracy_text(self.value, self.spread)} ({number(self.megabytes)} MB, lr {sign}{self.rate:g})"


def outcomes(folder: Path) -> dict[str, Outcome]:
    """Return, by method, what the finished runs in a point's folder reached."""
    runs = [run for run in load_runs(folder) if run.summary] if any(folder.glob("*/config.json")) else []
    if not runs:
        return {}
    metric, groups = main_metric(runs), grouped(runs)

    def rate(group: Group) -> float:
        return float(group[1][0].config["optimizer"]["lr"])

    def setting(group: Group) -> dict[str, str]:
        return {
            key: value for key, value in flat({**group[1][0].config, "kind": group[0].method}).items() if key != RATE
        }

    found: dict[str, Outcome] = {}
    for group in at_best_rate(groups, metric):
        row, (first, *_) = group
        value = value_of(row, metric)
        tried = tuple(rate(g) for g in groups if setting(g) == setting(group))
        units = first.config["model"]["hidden"] // first.config["workers"]
        if value is not None and (row.method not in found or value > found[row.method].value):
            found[row.method] = Outcome(
                metric, value, spread_of(row, metric), row.bytes_due / 1e6, rate(group), tried, units
            )
    return found


def difference(found: Mapping[str, Outcome], method: str) -> tuple[float, float] | None:
    """Return how many points a method is above ``narrow``, and the standard deviation of the difference."""
    if method not in found or "narrow" not in found:
        return None
    one, other = found[method], found["narrow"]
    return 100 * (one.value - other.value), 100 * math.hypot(one.spread or 0.0, other.spread or 0.0)


Map = list[tuple[Factor, dict[Any, dict[str, Outcome]]]]


def read(out: Path) -> Map:
    """Return, for each factor and value, what the methods reached; points without runs are left out."""
    found = []
    for factor in factors(long=True):
        own = {value: outcomes(out / point.name) for value, point in factor.points.items()}
        found.append((factor, {value: methods for value, methods in own.items() if methods}))
    return [(factor, own) for factor, own in found if own]


def table(found: Map) -> str:
    """Return the Markdown table."""
    lines = [["factor", "value", "units per worker", *METHODS, "relay - narrow"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for factor, own in found:
        for value, methods in own.items():
            units = next(iter(methods.values())).share
            cells = [str(methods.get(method, "-")) for method in METHODS]
            gain = difference(methods, "relay")
            spread = f" ± {gain[1]:.1f}" if gain and gain[1] else ""
            shown = f"{gain[0]:+.1f}{spread}" if gain else "-"
            lines.append([f"{factor.recipe}: {factor.name}", _text(value), str(units), *cells, shown])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(found: Map, out: Path) -> None:
    """Draw a panel per factor and a row per recipe: how many points the others are above ``narrow``; write a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context():
        set_style()
        recipes = {recipe: [each for each in found if each[0].recipe == recipe] for recipe in BASE}
        rows = [own for own in recipes.values() if own]
        most = max(map(len, rows))
        figure = Figure(figsize=(0.6 + 2.5 * max(most, 2), 0.5 + 2.6 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), most, squeeze=False)
        for line, own in zip(grid, rows, strict=True):
            for axes in line[len(own) :]:
                axes.set_axis_off()
            for axes, (factor, values) in zip(line, own, strict=False):
                _panel(axes, factor, values)
            first = next(iter(next(iter(own[0][1].values())).values()))
            line[0].set_ylabel(f"{first.metric} minus narrow's, points")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        drawn = BytesIO()
        figure.savefig(drawn, format="png", dpi=130)
    atomic.write(out, drawn.getvalue())


def _panel(axes: "Axes", factor: Factor, values: Mapping[Any, Mapping[str, Outcome]]) -> None:
    is_text = isinstance(next(iter(values)), str)
    at = dict(zip(values, range(len(values)) if is_text else values, strict=True))
    looks: dict[str, dict[str, Any]] = {
        "ensemble": {"fmt": "o--", "color": "#CC79A7", "linewidth": 1.0, "markersize": 3},
        "relay": {"fmt": "o-", "color": "#0072B2", "linewidth": 1.8, "markersize": 4.5},
    }
    for method, look in looks.items():
        gains = {at[value]: gain for value, own in values.items() if (gain := difference(own, method))}
        heights, spreads = [gain for gain, _ in gains.values()], [spread for _, spread in gains.values()]
        axes.errorbar(list(gains), heights, spreads, elinewidth=0.8, label=f"{method} minus narrow", **look)
    if base := [(at[value], gain[0]) for value, changes in factor.values.items()
                if not changes and value in at and (gain := difference(values[value], "relay"))]:  # fmt: skip
        axes.plot(*base[0], "o", markersize=10, fillstyle="none", color=looks["relay"]["color"], markeredgewidth=0.8)
    if not is_text:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(list(at.values()), [_text(value) for value in values])
    axes.margins(x=0.12)
    low, high = axes.dataLim.intervaly
    room = 0.3 * max(high, -low, 0.5)  # for the text, and to keep zero well inside
    low, high = min(low, 0) - room, max(high, 0) + room
    axes.set_ylim(low, high)
    axes.axhspan(0, high, color="#0072B2", alpha=0.06, linewidth=0)
    axes.axhspan(low, 0, color="#009E73", alpha=0.06, linewidth=0)
    axes.axhline(0, color="#59636E", linewidth=1)
    axes.text(0.03, 0.97, "dealing pays", va="top", fontsize=8, color="#0072B2", transform=axes.transAxes)
    axes.text(0.03, 0.03, "one small net pays", fontsize=8, color="#00714F", transform=axes.transAxes)
    axes.set_title(factor.recipe)
    axes.set_xlabel(factor.name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only table and picture, no training")
    parser.add_argument("--long", action="store_true", help="also train longer")
    parser.add_argument("--edges", action="store_true", help="try more rates where the best is at an edge")
    parser.add_argument("--only", choices=BASE, help="one recipe")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/map"))
    parser.add_argument("--picture", type=Path, default=Path("docs/when-dealing-pays.png"))
    options = parser.parse_args()
    failed: list[Key] = []
    if not options.report:
        chosen = [factor for factor in factors(options.long) if options.only in (None, factor.recipe)]
        points = {point.name: point for factor in chosen for point in factor.points.values()}
        failed = run_points(list(points.values()), options)
    found = read(options.out)
    if not found:
        raise SystemExit(f"{options.out}: expected folders with finished runs, got none; run without --report")
    print(f"\n{table(found)}")
    draw(found, options.picture)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {failed}")


if __name__ == "__main__":
    main()
