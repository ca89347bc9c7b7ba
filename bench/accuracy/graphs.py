"""Graph networks: every method at equal operations per worker, by number of workers; for docs/graphs.md.

    SKERRY_DATA=... python bench/accuracy/graphs.py cora --workers 4 2 8 --seeds 10       # citeseer: the same
    SKERRY_DATA=... python bench/accuracy/graphs.py wordnet --workers 4 --seeds 3
    python bench/accuracy/graphs.py --table                                               # of all that is done

A run adds a line to ``--out`` when it ends, and what is there is not run again, so it may be stopped at any time. With
seed 0 each row is trained at each of its rates. The one with the best accuracy on the validation nodes is trained with
the other seeds.

A subnet of one of m workers takes T steps, and replicas of the whole net T / m, so that a worker does about as much.
The paper's ``ist`` has T / m steps of its subnets. ``single`` has T steps, m times the operations of a worker.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import skerry
from skerry.callbacks import Callback
from skerry.experiments.config import parse_settings
from skerry.experiments.recipes import Job, find_recipe
from skerry.experiments.runs.execute import arguments_of, configure
from skerry.model.graph_inputs import GraphInputs, call_on_graph
from skerry.model.tensors import shapes_of
from skerry.plan import Axis, Plan
from skerry.plan.dims import DealtDim
from skerry.weights import materialize

RATES = (0.01, 0.03, 0.003)
SHOWN = {
    "single": "#1D2126", "relay": "#0072B2", "ist": "#D55E00", "narrow": "#009E73", "ensemble": "#B8860B",
    "local_sgd": "#CC79A7",
}  # fmt: skip
ADAMW = {"optimizer.name": "AdamW"}


@dataclass(frozen=True)
class Row:
    """What is trained: a recipe and a method, with settings; ``change`` may put another net into the job."""

    label: str
    recipe: str
    method: str
    settings: Mapping[str, Any]
    rates: Sequence[float] = RATES
    change: Callable[[Job], Job] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What lines of this row are found by."""
        return json.dumps([self.label, self.recipe, self.method, self.settings], sort_keys=True)


def planetoid_rows(recipe: str, workers: int, steps: int, local: int, **every: Any) -> Iterator[Row]:
    """Yield the rows of a small graph that every step takes whole."""

    def row(label: str, method: str, num_steps: int, **more: Any) -> Row:
        rounds = max(1, round(num_steps / local))
        settings = {"rounds": rounds, "local_steps": round(num_steps / rounds)}
        settings |= {"workers": workers} if method != "single" else {}
        change = more.pop("change", None)
        return Row(label, recipe, method, settings | every | more, change=change)

    yield row("single", "single", steps)
    yield row("relay", "relay", steps)
    yield row("ist", "ist", steps)
    yield row("ist, T/m steps (the paper's)", "ist", steps // workers)
    yield row("narrow", "narrow", steps)
    yield row("ensemble", "ensemble", steps)
    yield row("local_sgd", "local_sgd", steps // workers)
    if workers == 4 and not every:
        yield row("diloco", "diloco", steps // workers, **ADAMW)
        yield row("ist, input dim dealt out as well", "ist", steps, change=with_dealt_input)


def wordnet_rows(recipe: str, workers: int, steps: int, local: int, **more: Any) -> Iterator[Row]:
    """Yield the rows of a graph whose steps take clusters."""

    def row(method: str, num_steps: int, label: str = "") -> Row:
        settings = {"rounds": max(1, round(num_steps / local)), "local_steps": local}
        settings |= {"workers": workers} if method != "single" else {}
        return Row(label or method, recipe, method, settings | more)

    yield row("relay", steps)
    yield row("narrow", steps)
    yield row("local_sgd", steps // workers)
    yield row("ensemble", steps)
    yield row("single", steps // workers, label="single, T/m steps")
    yield row("ist", steps)
    yield row("single", steps, label="single, T steps")


class DealtInput(nn.Module):
    """A linear layer without bias that reads those features that it has weights for: in a subnet some of them."""

    features: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("features", torch.arange(weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (nodes, all features) to (nodes, outputs)."""
        return x @ self.weight.new_zeros(x.shape[1], len(self.weight)).index_copy(0, self.features, self.weight.T)


def with_dealt_input(job: Job) -> Job:
    """Return the job with features dealt out as well."""
    assert job.start is not None
    net, layer, plan = materialize(job.model, job.start(job.model)), "convs.0.lin", job.plan
    conv: Any = net.get_submodule("convs.0")
    conv.lin = DealtInput(conv.lin.weight.detach())
    num = len(conv.lin.features)
    units = torch.arange(plan.num_units, plan.num_units + num, dtype=torch.int32)
    dims = {
        **plan.dims,
        f"{layer}.weight": (plan.dims[f"{layer}.weight"][0], DealtDim(units, "in")),
        f"{layer}.features": (DealtDim(units, "out"),),
    }
    axes = (*plan.axes, Axis("features", num, start=plan.num_units))
    return replace(job, model=net, start=None, plan=Plan(axes, dims, shapes_of(net)))


def train(row: Row, rate: float, seed: int) -> dict[str, Any]:
    """Train a row and return its line: accuracies on validation and test nodes after each evaluated round."""
    config = configure(row.recipe, row.method, {**row.settings, "optimizer.lr": rate, "seed": seed, "threads": 1})
    job = find_recipe(row.recipe).build(config)
    job = row.change(job) if row.change else job
    assert isinstance(job.test[0], GraphInputs)
    graph, curve = job.test[0].graph, list[list[float]]()
    every = max(1, config.rounds // (10 if graph.num_nodes < 10_000 else 2))

    @torch.no_grad()
    def score(session: skerry.Session, record: Any) -> None:
        if session.state.round % every == 0 or session.state.round == config.rounds:
            model = session.full().whole().eval()
            right = call_on_graph(model, graph).argmax(1) == graph.y
            masks = graph.val_mask, graph.test_mask
            curve.append([session.state.round, *(round(float(right[mask].float().mean()), 4) for mask in masks)])

    began = time.process_time()
    result = skerry.train(
        job.model,
        job.loss_fn,
        job.data,
        **arguments_of(config, job),
        callbacks=[Callback(on_round=score)],
    )
    totals, cost = result.state.totals, result.step_cost
    memory = sum(getattr(cost, name) for name in ("weights", "gradients", "optimizer", "activations"))
    return {
        "name": row.name, "lr": rate, "seed": seed, "val": curve[-1][1], "test": curve[-1][2], "curve": curve,
        "steps": config.rounds * config.local_steps, "MB": totals["bytes_due"] / 1e6, "TFLOP": totals["flop"] / 1e12,
        "memory_MB": memory / 1e6, "cpu_s": round(time.process_time() - began, 1),
    }  # fmt: skip


def lines_of(out: Path) -> list[dict[str, Any]]:
    """Return the lines that are there."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def best_rate(row: Row, lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the rate with the best accuracy on validation nodes with seed 0."""
    first = [line for line in lines if line["name"] == row.name and line["seed"] == 0]
    return float(max(first, key=lambda line: line["val"])["lr"])


def run(rows: Sequence[Row], rates: int, seeds: int, out: Path) -> None:
    """Train what is not there yet: all rows with one seed, then with the next one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for row in rows:
            for rate in row.rates[:rates] if seed == 0 else [best_rate(row, lines_of(out))]:
                if any((line["name"], line["lr"], line["seed"]) == (row.name, rate, seed) for line in lines_of(out)):
                    continue
                line = train(row, rate, seed)
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(row.name, rate, seed, line["val"], line["test"], line["cpu_s"], flush=True)


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of all rows, each at its best rate."""
    yield "| recipe | method | settings | lr | rates tried | seeds | final | best round | MB | TFLOP | memory, MB |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name in dict.fromkeys(line["name"] for line in lines):
        own = [line for line in lines if line["name"] == name]
        rate = max((line for line in own if line["seed"] == 0), key=lambda line: line["val"])["lr"]
        rates, own = {line["lr"] for line in own}, [line for line in own if line["lr"] == rate]
        label, recipe, _, settings = json.loads(name)
        final, best = [line["test"] for line in own], [max(at[2] for at in line["curve"]) for line in own]
        rest = " | ".join(f"{own[0][key]:.3g}" for key in ("MB", "TFLOP", "memory_MB"))
        told = ", ".join(f"{key} {value}" for key, value in settings.items())
        yield (
            f"| {recipe} | {label} | {told} | {rate:g} | {len(rates)} | {len(own)} | {mean(final)} | {mean(best)} | "
            f"{rest} |"
        )


def draw(lines: Sequence[Mapping[str, Any]], recipe: str, path: Path) -> None:
    """Draw accuracy against workers, width and length, the other two as in most rows."""
    at: dict[str, dict[tuple[int, int, int], list[float]]] = {}
    for line in lines:
        label, of, _, settings = json.loads(line["name"])
        if of != recipe or line["lr"] != RATES[0]:
            continue
        steps = settings["rounds"] * settings["local_steps"]
        steps *= settings["workers"] if label.startswith(("local_sgd", "diloco", "ist, T/m")) else 1
        key = settings.get("workers", 0), settings.get("model.hidden", 256), round(steps, -1)
        at.setdefault(label, {}).setdefault(key, []).append(100 * line["test"])
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    titles = "workers", "hidden units", "steps of a subnet"
    for k, (axes, title) in enumerate(zip(figure.subplots(1, 3, sharey=True), titles, strict=True)):
        for label, colour in SHOWN.items():
            found: dict[int, list[float]] = {}
            for key, values in at.get(label, {}).items():
                others = [(v, u) for d, (v, u) in enumerate(zip(key, (4, 256, 100), strict=True)) if d != k]
                if all(v == u or v == 0 for v, u in others):
                    found.setdefault(key[k], []).extend(values)
            points = sorted((x, statistics.fmean(values)) for x, values in found.items())
            if k == 0 and points and points[0][0] == 0:  # single: one worker
                axes.axhline(points[0][1], color=colour, linewidth=1, linestyle="--", label=label)
            else:
                axes.plot(
                    *zip(*points, strict=True), "o-", color=colour, markersize=4, linewidth=1.2, label=label
                ) if points else None
        axes.set_xscale("log", base=2)
        ticks = sorted({x for line in axes.get_lines() for x in line.get_xdata() if x > 1})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[-1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def mean(values: Sequence[float]) -> str:
    """Return the mean in percent, with the sample standard deviation where there are several values."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def main() -> None:
    """Run what the command line says, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", nargs="?", choices=["cora", "citeseer", "wordnet"])
    parser.add_argument("--workers", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, help="of a subnet")
    parser.add_argument("--local-steps", type=int)
    parser.add_argument("--rates", type=int, default=3, help="how many to try")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", help="only those with these labels")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings")
    parser.add_argument("--out", type=Path, default=Path("runs/graphs.jsonl"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", type=Path, help="of Cora")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(lines_of(options.out))))
        return
    if options.picture:
        draw(lines_of(options.out), "gist-cora", options.picture)
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", skerry.training.TheoryWarning)  # of short runs and bad rates
    make, steps, local = (wordnet_rows, 2000, 50) if options.graph == "wordnet" else (planetoid_rows, 400, 20)
    more, lengths = parse_settings(options.set), (options.steps or steps, options.local_steps or local)
    rows = [row for num in options.workers for row in make(f"gist-{options.graph}", num, *lengths, **more)]
    rows = list({row.name: row for row in rows if not options.rows or row.label in options.rows}.values())
    run(rows, options.rates, options.seeds, options.out)


if __name__ == "__main__":
    main()
