"""Winning tickets: pretraining with several methods, one-shot pruning by l2 norm, fine-tuning.

    SKERRY_DATA=... python bench/accuracy/tickets.py loft-cifar     # finished rows are kept; one thread
    python bench/accuracy/tickets.py loft-cifar --report docs       # table, and docs/tickets-loft-cifar.png, from them

All methods pretrain on as many samples, four workers or one. Then of each axis the units with the largest norms are
kept, the batch norms of the small net are measured on training inputs, and it is scored: as ``skerry.prune`` leaves it
("pruned"), and with what reads the units multiplied by the inverse of the part that is left ("rescaled"). Then one
machine trains it on, the rescaled net where subnets were trained, as calibration has made that fit the sum over all
units, else the pruned one. ``random`` keeps units of the net pretrained by ``ist`` at random, ``none`` is that net
before any training.

The filter-rank distance says how far the order of the filters by norm is from that at the end of pretraining:

    F(sigma) = sum_i (1/i) |ln i - ln sigma(i)|,   sigma(i): the rank now of the filter that ends at rank i,

here as a mean over axes, over what a random order has: 1 is chance, 0 the final order. (Wang et al., arXiv 2210.16169.)
"""

import argparse
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import skerry
from skerry.experiments.methods import build
from skerry.experiments.recipes import Job, find_recipe
from skerry.experiments.reports.comparison import markdown_table
from skerry.experiments.reports.pictures import LINES, PALETTE, set_style
from skerry.experiments.runs.execute import configured, make_optimizer
from skerry.merge.calibrate import estimate_batch_norm_, scaled
from skerry.partitions import Share
from skerry.plan.dims import Axis
from skerry.subnet.extract import extract, plan_of_subnet
from skerry.subnet.prune import num_kept, strongest_units, unit_norms
from skerry.training import evaluate
from skerry.training.train import Result, calibration_inputs
from skerry.weights import materialize

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is pretrained, pruned and trained on.

    Attributes:
        recipe: its name.
        model: settings of all its runs.
        axes: patterns of the axes that are dealt out and pruned.
        keeps: the fractions of units to keep, the most telling first.
        methods: settings of each pretraining, by its name.
        tuning: settings of fine-tuning, by ``single``.
        num_test: the number of test samples.
    """

    recipe: str
    model: Mapping[str, Any]
    axes: Sequence[str] = ("*",)
    keeps: Sequence[float]
    methods: Mapping[str, Mapping[str, Any]]
    tuning: Mapping[str, Any]
    num_test: int


CASES = {
    "loft-cifar": Case(
        recipe="loft-cifar",
        model={"model.width": 8},
        keeps=(0.5, 0.3, 0.8),
        methods={
            "ist": {"rounds": 20, "local_steps": 10},
            "single": {"rounds": 80, "local_steps": 10},
            "local_sgd": {"rounds": 20, "local_steps": 10},
        },
        tuning={"rounds": 1, "local_steps": 250, "optimizer.lr": 0.05},
        num_test=5000,
    ),
    # TwIST: heads and hidden units of all layers but the first and the last, dealt every 15 batches (arXiv 2511.03983).
    "twist": Case(
        recipe="gpt-shakespeare",
        model={
            "model.layers": 4,
            "model.width": 48,
            "model.heads": 8,
            "model.head_size": 6,
            "model.hidden": 192,
            "data.block": 32,
        },
        axes=("blocks.[12].*",),
        keeps=(0.5,),
        methods={
            "ist": {"rounds": 12, "local_steps": 15},
            "single": {"rounds": 48, "local_steps": 15},
            "local_sgd": {"rounds": 12, "local_steps": 15},
        },
        tuning={"rounds": 1, "local_steps": 60, "optimizer.lr": 0.002},
        num_test=500,
    ),
}


@dataclass(frozen=True)
class Pretrained:
    """A pretrained full model, its units' norms after each round, (rounds, units), and what it has cost a worker."""

    model: nn.Module
    norms: Tensor
    share: Tensor
    mb: float = 0.0
    tflop: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A case, and the folder for what it makes."""

    case: Case
    folder: Path

    def job(self, method: str, settings: Mapping[str, Any]) -> tuple[Job, Mapping[str, Any]]:
        """Return a job of the recipe, and the arguments of its training."""
        always = {"eval_every": 0, "threads": 1, **self.case.model}
        recipe = find_recipe(self.case.recipe)
        config = configured(recipe, method, {**always, **settings})
        job = recipe.build(config)
        return replace(job, plan=job.plan.only(*self.case.axes)), {
            "algorithm": build(config),
            "optimizer": make_optimizer(config),
            "num_rounds": config.rounds,
            "schedule": skerry.cosine,
            "seed": config.seed,
            **config.steps,
        }

    @cached_property
    def tuning(self) -> tuple[Job, Mapping[str, Any]]:
        """The job of fine-tuning, whose model is not used, and its arguments."""
        return self.job("single", self.case.tuning)

    @cached_property
    def pretrainings(self) -> dict[str, Pretrained]:
        """What was pretrained in this process, or read."""
        return {}

    def pretrained(self, name: str) -> Pretrained:
        """Pretrain, or read what was pretrained before; ``none`` is the model before any training."""
        if name not in self.pretrainings:
            self.pretrainings[name] = self._pretrained(name)
        return self.pretrainings[name]

    def _pretrained(self, name: str) -> Pretrained:
        method = "single" if name == "none" else name
        job, arguments = self.job(method, self.case.methods[method])
        if job.start is not None:
            materialize(job.model, job.start(job.model))
        share, file = arguments["algorithm"].partition.share(job.plan.axes, 0), self.folder / f"{name}.safetensors"
        if name == "none":
            return Pretrained(job.model, unit_norms(job.model, job.plan)[None], torch.ones(job.plan.num_units))
        if not file.exists():
            norms: list[Tensor] = []
            note = skerry.callbacks.Callback(on_round=lambda *_: norms.append(unit_norms(job.model, job.plan)))
            result: Result = skerry.train(
                job.model, job.loss_fn, job.data, plan=job.plan, callbacks=[note], **arguments
            )
            totals = result.state.totals
            cost = torch.tensor([totals["bytes_due"] / 1e6, totals["flop"] / 1e12])
            state = {f"net.{n}": t.contiguous().clone() for n, t in result.model.state_dict().items()}
            save_file({"norms": torch.stack(norms), "cost": cost, **state}, file)
        saved = load_file(file)
        job.model.load_state_dict({n.removeprefix("net."): t for n, t in saved.items() if n.startswith("net.")})
        return Pretrained(job.model, saved["norms"], share, *saved["cost"].tolist())

    def pruned(self, name: str, keep: float, rescale: bool = False) -> nn.Module:
        """Return the small net, with its own statistics in batch norms."""
        job, found = self.tuning[0], self.pretrained("ist" if name == "random" else name)
        plan, nums = job.plan, num_kept(job.plan, keep)
        units = strongest_units(found.model, plan, keep)
        if name == "random":
            rng = torch.Generator().manual_seed(1)
            chosen = (a.start + torch.randperm(a.num_units, generator=rng)[: nums[a.name]] for a in plan.axes)
            units = torch.cat(list(chosen)).sort().values
        kept = extract(found.model, plan, units)
        if rescale:
            more = torch.tensor([a.num_units / nums[a.name] for a in plan.axes for _ in a.units], dtype=torch.float64)
            kept = scaled(kept, plan_of_subnet(plan, units), Share.independent(more[units]))
        inputs = calibration_inputs(job.data, [0])
        estimate_batch_norm_(kept, lambda net: [net(x) for x in inputs])
        return kept

    def row(self, name: str, keep: float) -> Row:
        """Prune, score, train on and score again."""
        (job, arguments), found = self.tuning, self.pretrained("ist" if name == "random" else name)
        x, y = job.test
        test = x[: self.case.num_test], y[: self.case.num_test]
        nets = {"pruned": self.pruned(name, keep), "rescaled": self.pruned(name, keep, rescale=True)}
        at_once = {each: evaluate(net, job.loss_fn, test, batch_size=500) for each, net in nets.items()}
        kept = nets["rescaled" if bool((found.share < 1).any()) else "pruned"]
        result = skerry.train(
            kept.train(), job.loss_fn, job.data, plan=skerry.Plan.whole(kept), test=test, **arguments
        )  # fmt: skip
        assert result.score is not None
        return {
            "pretraining": name,
            "keep": keep,
            "parameters": result.num_parameters,
            **{each: [score.accuracy, score.loss] for each, score in at_once.items()},
            "tuned": [result.score.accuracy, result.score.loss],
            "mb": found.mb,
            "tflop": found.tflop,
        }

    def rows(self) -> Iterator[Row]:
        """Yield all rows; those that are in the folder's file are read from it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = {(r["pretraining"], r["keep"]): r for r in self.finished()}
        methods = self.case.methods
        wanted = [(name, keep) for keep in self.case.keeps for name in (*methods, "random", "none")]
        for name, keep in [*wanted, *((name, 1.0) for name in methods)]:
            if (name, keep) not in done:
                done[name, keep] = self.row(name, keep)
                with (self.folder / "rows.jsonl").open("a") as file:
                    file.write(json.dumps(done[name, keep]) + "\n")
            yield done[name, keep]

    def finished(self) -> list[Row]:
        """Return the rows in the folder's file."""
        path = self.folder / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def report(self, folder: Path) -> str:
        """Return the table of the finished rows, and draw the distances of those whose order was noted."""
        order = [*self.case.methods, "random", "none"]
        found = sorted(self.finished(), key=lambda r: (-r["keep"], order.index(r["pretraining"])))
        axes = self.tuning[0].plan.axes
        by_name = {n: load_file(f)["norms"] for n in order if (f := self.folder / f"{n}.safetensors").exists()}
        _draw({name: distances(norms, axes) for name, norms in by_name.items()}, folder / f"{self.folder.name}.png")
        scores = {"pruned": "pruned", "rescaled": "rescaled", "tuned": "trained on"}
        titles = ("kept", "pretraining", *scores.values(), "parameters", "MB sent", "TFLOP per worker")
        return markdown_table(
            titles,
            [
                [f"{r['keep']:.0%}", r["pretraining"], *(self._score(r[k]) for k in scores),
                 f"{r['parameters']:,}", f"{r['mb']:.1f}", f"{r['tflop']:.2g}"]
                for r in found
            ],
            left=("kept", "pretraining"),
        )  # fmt: skip

    def _score(self, score: Sequence[float]) -> str:
        accuracy, loss = score
        return f"perplexity {math.exp(loss):.2f}" if math.isnan(accuracy) else f"{accuracy:.3f} ({loss:.2f})"


def _draw(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    set_style()
    figure = Figure(figsize=(5.5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="part of pretraining", ylabel="filter-rank distance")
    axes.set_title("how far the order of the units is from their last one (1: chance)")
    for (name, y), colour, line in zip(curves.items(), PALETTE, LINES, strict=False):
        axes.plot([(k + 1) / len(y) for k in range(len(y))], y, color=colour, linestyle=line, label=name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def rank_distance(now: Tensor, end: Tensor) -> float:
    """Return F of the order by ``now``, (units,), against the order by ``end``: 0 if they are the same."""
    rank = torch.empty(len(now), dtype=torch.float64)
    rank[now.argsort(descending=True)] = torch.arange(1, len(now) + 1, dtype=torch.float64)
    i = torch.arange(1, len(now) + 1, dtype=torch.float64)
    return float(((i.log() - rank[end.argsort(descending=True)].log()).abs() / i).sum())


def chance(num: int, draws: int = 200) -> float:
    """Return the mean of F over random orders of ``num`` units."""
    rng, end = torch.Generator().manual_seed(0), torch.arange(num).double()
    return sum(rank_distance(torch.rand(num, generator=rng), end) for _ in range(draws)) / draws


def distances(norms: Tensor, axes: Sequence[Axis]) -> list[float]:
    """Return the distance from the last order after each round, over chance, as a mean over axes."""
    own = [norms[:, axis.start : axis.units.stop] for axis in axes]
    by_chance = [chance(axis.num_units) for axis in axes]
    return [
        sum(rank_distance(each[t], each[-1]) / c for each, c in zip(own, by_chance, strict=True)) / len(axes)
        for t in range(len(norms))
    ]


def main() -> None:
    """Run what is missing and print each row; or print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--report", type=Path, help="folder of the picture")
    arguments = parser.parse_args()
    trial = Trial(CASES[arguments.case], arguments.out / f"tickets-{arguments.case}")
    if arguments.report:
        print(trial.report(arguments.report))
        return
    for row in trial.rows():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
