"""Winning tickets: pretraining with several methods, one-shot pruning by l2 norm, fine-tuning.

    SKERRY_DATA=... python bench/accuracy/tickets.py loft-cifar            # finished rows are kept
    python bench/accuracy/tickets.py loft-cifar --report docs/tickets.png  # table and picture from the rows alone

All methods pretrain on as many samples, four workers or one. Then of each axis the units with the largest norms are
kept (``skerry.prune``), the batch norms of the small net are measured on training inputs ("one shot"), and one machine
trains it on. Where subnets were trained, what reads the units is first scaled to the number that is left: calibration
has made it fit the sum over all units. ``random`` keeps units of the net pretrained by ``ist`` at random, ``none`` is
that net before any training.

The filter-rank distance says how far the order of the filters by norm is from that at the end of pretraining:

    F(sigma) = sum_i (1/i) |ln i - ln sigma(i)|,   sigma(i): the rank now of the filter that ends at rank i,

here as a mean over axes, over what a random order has: 1 is chance, 0 the final order. (Wang et al., arXiv 2210.16169.)
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import skerry
from skerry.algorithms import single
from skerry.experiments.methods import build
from skerry.experiments.recipes import Job, Recipe, find_recipe
from skerry.experiments.runs.execute import configured, make_optimizer
from skerry.merge.calibrate import estimate_batch_norm_, scaled
from skerry.partitions import Share
from skerry.plan.dims import Axis
from skerry.subnet.extract import extract, plan_of_subnet
from skerry.subnet.prune import num_kept, strongest_units, unit_norms
from skerry.training import evaluate
from skerry.training.evaluation.test_set import Test
from skerry.training.train import calibration_inputs


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is pretrained, pruned and trained on.

    Attributes:
        keeps: the fractions of units to keep.
        methods: settings of each pretraining, by its name.
        tuning: settings of fine-tuning, by ``single``.
        num_test: the number of test samples.
        tune: whether nets are trained on, too.
    """

    recipe: str
    keeps: Sequence[float]
    methods: Mapping[str, Mapping[str, Any]]
    tuning: Mapping[str, Any]
    num_test: int


SMALL: Mapping[str, Any] = {"model.width": 8, "model.stem_stride": 4, "eval_every": 0, "threads": 1}
CASES = {
    "loft-cifar": Case(
        recipe="loft-cifar",
        keeps=(0.5, 0.3, 0.8),
        methods={
            "ist": {**SMALL, "rounds": 10, "local_steps": 20},
            "single": {**SMALL, "rounds": 40, "local_steps": 20},
            "local_sgd": {**SMALL, "rounds": 10, "local_steps": 20},
        },
        tuning={**SMALL, "rounds": 1, "local_steps": 250, "optimizer.lr": 0.05},
        num_test=5000,
    ),
}


@dataclass(frozen=True)
class Pretrained:
    """A pretrained full model, the norms of its units after each round, and what it has cost a worker."""

    job: Job
    model: nn.Module
    norms: Tensor
    mb: float
    tflop: float
    share: Tensor


def pretrained(case: Case, recipe: Recipe, method: str, folder: Path) -> Pretrained:
    """Pretrain, or read what was pretrained before from ``folder``."""
    config = configured(recipe, method, case.methods[method])
    job, path, algorithm = recipe.build(config), folder / f"{method}.safetensors", build(config)
    share = algorithm.partition.share(job.plan.axes, 0)
    facts = folder / f"{method}.json"
    if not facts.exists():
        norms = []

        def note(session: skerry.Session, record: Any) -> None:
            norms.append(unit_norms(session.setup.store.model, job.plan))  # type: ignore[attr-defined]  # it is serial

        result = skerry.train(
            job.model, job.loss_fn, job.data, plan=job.plan, algorithm=algorithm, optimizer=make_optimizer(config),
            num_rounds=config.rounds, schedule=skerry.cosine, seed=config.seed, start=job.start, device="cpu",
            callbacks=[skerry.callbacks.Callback(on_round=note)],
        )  # fmt: skip
        save_file(
            {"norms": torch.stack(norms), **{f"net.{n}": t.contiguous() for n, t in result.model.state_dict().items()}},
            path,
        )
        totals = result.state.totals
        facts.write_text(json.dumps({"mb": totals["bytes_due"] / 1e6, "tflop": totals["flop"] / 1e12}))
    saved, told = load_file(path), json.loads(facts.read_text())
    model = recipe.net(config, job.signature.sizes)[0].to_empty(device="cpu")
    model.load_state_dict({n.removeprefix("net."): t for n, t in saved.items() if n != "norms"})
    return Pretrained(job, model, saved["norms"], told["mb"], told["tflop"], share)


def untrained(case: Case, recipe: Recipe) -> Pretrained:
    """Return the model before any training."""
    config = configured(recipe, "single", case.methods["single"])
    job = recipe.build(config)
    model = job.model
    if job.start is not None:
        from skerry.weights.source import materialize

        materialize(model, job.start(model))
    return Pretrained(job, model, unit_norms(model, job.plan)[None], 0.0, 0.0, torch.ones(job.plan.num_units))


def row(case: Case, recipe: Recipe, found: Pretrained, keep: float, *, at_random: bool) -> dict[str, Any]:
    """Prune, score, train on and score again."""
    began, job, plan = time.perf_counter(), found.job, found.job.plan
    units = strongest_units(found.model, plan, keep)
    if at_random:
        rng, nums = torch.Generator().manual_seed(1), num_kept(plan, keep)
        units = torch.cat(
            [a.start + torch.randperm(a.num_units, generator=rng)[: nums[a.name]].sort().values for a in plan.axes]
        )
    kept = extract(found.model, plan, units)
    left = torch.tensor([num_kept(plan, keep)[a.name] / a.num_units for a in plan.axes for _ in a.units])
    if bool((found.share < 1).any()):
        kept = scaled(kept, plan_of_subnet(plan, units), Share.independent((1 / left.double())[units]))
    inputs = calibration_inputs(job.data, range(job.data.num_workers))
    estimate_batch_norm_(kept, lambda net: [net(x) for x in inputs])
    test = Test(job.test[0][: case.num_test], job.test[1][: case.num_test], metrics=job.metrics, batch_size=1000)
    at_once = evaluate(kept, job.loss_fn, test)
    config = configured(recipe, "single", case.tuning)
    alone = recipe.build(config)
    result = skerry.train(
        kept.train(), job.loss_fn, alone.data, plan=skerry.Plan.whole(kept),
        algorithm=single(local_steps=config.local_steps), optimizer=make_optimizer(config), num_rounds=config.rounds,
        schedule=skerry.cosine, seed=1, test=test,
    )  # fmt: skip
    score = result.score
    assert score is not None
    return {
        "parameters": result.num_parameters,
        "gflop_per_step": result.step_cost.flop / 1e9,
        "one_shot": [at_once.accuracy, at_once.loss],
        "tuned": [score.accuracy, score.loss],
        "mb": found.mb,
        "tflop": found.tflop,
        "s": time.perf_counter() - began,
    }


def rows(case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all rows; those that are in the folder's file are read from it."""
    path, recipe = folder / "rows.jsonl", find_recipe(case.recipe)
    done = (
        {(r["pretraining"], r["keep"]): r for r in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else {}
    )
    plans: list[tuple[str, float]] = [(m, k) for k in case.keeps for m in (*case.methods, "random", "none")]
    plans += [(m, 1.0) for m in case.methods]
    known: dict[str, Pretrained] = {}
    for name, keep in plans:
        if (name, keep) not in done:
            method = "ist" if name == "random" else name
            if method not in known:
                known[method] = untrained(case, recipe) if name == "none" else pretrained(case, recipe, method, folder)
            new = row(case, recipe, known[method], keep, at_random=name == "random")
            done[name, keep] = {"pretraining": name, "keep": keep, **new}
            with path.open("a") as file:
                file.write(json.dumps(done[name, keep]) + "\n")
        yield done[name, keep]


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
    """Run what is missing, and print each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--out", type=Path, default=Path("runs/tickets"))
    arguments = parser.parse_args()
    case, folder = CASES[arguments.case], arguments.out / arguments.case
    folder.mkdir(parents=True, exist_ok=True)
    for each in rows(case, folder):
        print(json.dumps(each), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
