"""What makes subnets learn better at the same operations and memory: variants of IST, and the narrow net beside them.

    SKERRY_DATA=... python bench/beyond.py fashion-mlp [--budget 0.33] [--seeds 2] [--only "relay;narrow"]
        [--set model.hidden=64] [--steps 250]

Prints a line for each variant: metric (mean, spread over seeds) and MB a worker. All variants get the operations of the
recipe's ``ist`` times ``--budget``. Two runs at a time, one thread each.

- *ist R*: a fraction R of the units is dealt again each round; *relay*: subnets are
  handed on whole.
- *still P, R*: dealt with reshuffle R for the first P of the rounds, then no more.
- *wide T, R*: a net T times as wide, dealt to T times as many hands as there are workers: a worker's cost is the same,
  and most units rest.
- *rotating*: groups of units are dealt once and move on between workers so that every pair of groups of neighbouring
  axes meets once in n moves, instead of by chance.
- *relay distil W*: and learn from what the worker had in the last round: W times the Kullback-Leibler divergence of its
  outputs is added to the loss, in three quarters of the steps, since the teacher's forward costs a third of a step.
- *narrow outer*: ``narrow`` with DiLoCo's outer optimizer on the mean of its workers' moves.
- *grow P, R*: a net of a worker's share is trained by all for the first P of the rounds; then every worker goes on with
  its copy as a subnet of a net n times as wide, dealt with reshuffle R from then on.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.config import Config, parse_settings
from skerry.experiment import configure, make_optimizer
from skerry.partition import Assignment, Partition
from skerry.plan import Axis, Plan, named_tensors
from skerry.priors import adjusted
from skerry.recipes import RECIPES
from skerry.subnet import narrow_model, put_
from skerry.train import Result, calibration_inputs


@dataclass(frozen=True)
class Rotating:
    """Groups of axis k are dealt once; after t moves, one in ``every`` rounds, worker w has group (w - k t) mod n."""

    num_workers: int
    every: int = 1
    seed: int = 0
    covers: ClassVar[bool] = True

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Move the groups on."""
        held = skerry.Disjoint(self.num_workers, self.seed, reshuffle=0.0).assign(axes, 0).held.clone()
        for k, axis in enumerate(axes):
            own = slice(axis.start, axis.start + axis.num_units)
            held[:, own] = held[:, own].roll(k * (round // self.every), 0)
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return 1/n."""
        return self.assign(axes, round).share()


@dataclass(frozen=True)
class Still:
    """``then``, dealt no more from round ``after`` on."""

    then: Partition
    after: int
    covers: ClassVar[bool] = True

    @property
    def num_workers(self) -> int:
        """The number of workers of ``then``."""
        return self.then.num_workers

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal as ``then`` does until ``after``."""
        return self.then.assign(axes, min(round, self.after))

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return the shares of ``then``."""
        return self.then.share(axes, min(round, self.after))


@dataclass(frozen=True)
class Resting:
    """Units are dealt to ``times`` as many hands as there are workers; the other hands' units rest for the round."""

    num_workers: int
    times: int
    seed: int
    reshuffle: float
    covers: ClassVar[bool] = False

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Deal to all hands, keep the workers'."""
        return Assignment(self._hands.assign(axes, round).held[: self.num_workers])

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return one over the number of hands."""
        return self._hands.share(axes, round)

    @property
    def _hands(self) -> skerry.Disjoint:
        return skerry.Disjoint(self.num_workers * self.times, self.seed, reshuffle=self.reshuffle)


Make = Callable[[Config, skerry.Algorithm], skerry.Algorithm]


def _ist(**changes: Any) -> Make:
    return lambda c, _: skerry.ist(
        c.workers, **{"local_steps": c.local_steps, "seed": c.seed, "reshuffle": 0.1, **changes}
    )


def _rotating(every: int) -> Make:
    return lambda c, _: skerry.Algorithm(
        name="rotating", partition=Rotating(c.workers, every, c.seed), local_steps=c.local_steps
    )


def _still(reshuffle: float, part: float) -> Make:
    dealing = _ist(reshuffle=reshuffle)
    return lambda c, a: replace(d := dealing(c, a), partition=Still(d.partition, int(part * c.rounds)))


def _resting(reshuffle: float, times: int) -> Make:
    return lambda c, _: skerry.Algorithm(
        name="resting", partition=Resting(c.workers, times, c.seed, reshuffle), local_steps=c.local_steps
    )


@dataclass(frozen=True)
class Variant:
    """How to train; the part of the rounds in which the narrow net is trained first; how many times as wide; the
    weight of what the last subnet says."""

    make: Make
    grown: float = 0.0
    times: int = 1
    distil: float = 0.0


VARIANTS = {
    **{f"ist {r:g}": Variant(_ist(reshuffle=r)) for r in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)},
    "ist .1 travel": Variant(_ist(reshuffle=0.1, optimizer_state="travel")),
    "ist 1 travel": Variant(_ist(reshuffle=1.0, optimizer_state="travel")),
    **{f"rotating {every}": Variant(_rotating(every)) for every in (1, 5)},
    **{f"still {p:g}, {r:g}": Variant(_still(r, p)) for p in (0.5, 0.8) for r in (0.1, 1.0)},
    **{f"wide {t}, {r:g}": Variant(_resting(r, t), times=t) for t in (2, 4) for r in (0.1, 1.0)},
    **{f"grow {p:g}, {r:g}": Variant(_ist(reshuffle=r), p) for p in (0.25, 0.5, 0.75) for r in (0.0, 0.01, 0.1, 1.0)},
    "relay": Variant(_ist(reshuffle=None)),
    "relay travel": Variant(_ist(reshuffle=None, optimizer_state="travel")),
    **{f"grow {p:g}, relay": Variant(_ist(reshuffle=None), p) for p in (0.1, 0.25, 0.5)},
    **{f"relay distil {w:g}": Variant(_ist(reshuffle=None), distil=w) for w in (0.3, 1.0)},
    "narrow outer": Variant(
        lambda c, _: replace(skerry.narrow(c.workers, local_steps=c.local_steps), outer=skerry.Outer())
    ),
    "ensemble": Variant(lambda c, _: skerry.ensemble(c.workers, local_steps=c.local_steps, seed=c.seed)),
    "narrow": Variant(lambda c, _: skerry.narrow(c.workers, local_steps=c.local_steps)),
}


def train_part(config: Config, job: Any, model: nn.Module, plan: Plan, algorithm: skerry.Algorithm, begin: float,
               end: float, rate: float, start: Any) -> Result:  # fmt: skip
    """Train from progress ``begin`` to ``end`` of the whole schedule."""
    rounds = max(1, round(config.rounds * (end - begin)))
    settings = config.change({"optimizer.lr": rate})
    return skerry.train(
        model, job.loss_fn, job.data, plan=plan, algorithm=algorithm, optimizer=make_optimizer(settings),
        num_rounds=rounds, schedule=lambda at: skerry.cosine(begin + (end - begin) * at), seed=config.seed,
        test=job.test, metrics=job.metrics, eval_batch_size=config.eval_batch_size, start=start, verify=False,
        logit_adjustment=job.logit_adjustment,
    )  # fmt: skip


@torch.no_grad()
def side_by_side(narrow: nn.Module, model: nn.Module, plan: Plan, assignment: Assignment) -> nn.Module:
    """Return the full model in which every subnet, and what lies between two of them, is a copy of ``narrow``."""
    full = skerry.materialize(model, skerry.FromInitializer(model, 0))
    small = named_tensors(narrow)
    for name, tensor in named_tensors(full).items():
        rows = plan.row(name, tensor.shape)
        part = small[name]
        for dim, dealt in enumerate(rows):
            if dealt is not None:  # unit u of the full axis is the copy of the narrow unit of its rank with its holder
                owner = assignment.held[:, dealt.units].long().argmax(0)
                rank = torch.zeros_like(owner)
                for worker in range(assignment.num_workers):
                    mine = (owner == worker).nonzero().flatten()
                    rank[mine] = torch.arange(len(mine)) % part.shape[dim]
                part = part.index_select(dim, rank)
        put_(tensor, part)
    return full


def metric_of(score: skerry.Score) -> float:
    """Return the first metric, or the accuracy."""
    return next(iter(score.metrics.values()), score.accuracy)


def train_distilled(
    config: Config, job: Any, algorithm: skerry.Algorithm, rate: float, weight: float
) -> tuple[float, float]:
    """Train a relay in which each worker's last subnet teaches the next; return accuracy and MB."""
    algorithm = replace(algorithm, local_steps=round(algorithm.local_steps * 3 / 4))
    teachers: dict[int, nn.Module] = {}
    rows = job.logit_adjustment
    loss_fn = [job.loss_fn if rows is None else adjusted(job.loss_fn, rows[w]) for w in range(config.workers)]
    session = skerry.Session(
        job.model, plan=job.plan, algorithm=algorithm, optimizer=make_optimizer(config.change({"optimizer.lr": rate})),
        num_rounds=config.rounds, schedule=skerry.cosine, seed=config.seed, start=job.start,
        loss_fn=job.loss_fn, test=job.test, eval_batch_size=config.eval_batch_size,
    )  # fmt: skip
    with session:
        for round_ in session.rounds():
            for worker in round_.workers:
                teacher = teachers.get(worker.number)
                for x, y in job.data.batches(worker.number, worker.first_step, worker.num_steps):
                    said = worker.subnet(x)
                    loss = loss_fn[worker.number](said, y)
                    if teacher is not None:
                        with torch.no_grad():
                            taught = teacher(x).softmax(1)
                        loss = loss + weight * F.kl_div(said.log_softmax(1), taught, reduction="batchmean")
                    worker.step(loss, y)
                teachers[worker.number] = copy.deepcopy(worker.subnet).eval()
    full = session.full(*calibration_inputs(job.data, range(config.workers)))
    return metric_of(session.score(full, metrics=job.metrics)), session.state.totals["bytes_due"] / 1e6


def one(
    recipe: str, variant: str, rate: float, seed: int, budget: float, changes: dict[str, Any], steps: int | None
) -> tuple[float, float]:
    """Train a variant; return metric and MB."""
    torch.set_num_threads(1)
    chosen = VARIANTS[variant]
    grown, make = chosen.grown, chosen.make
    config = configure(recipe, "ist", {"seed": seed} | changes)
    if chosen.times > 1:
        wider = "hidden" if "hidden" in config.model else "width"
        config = config.change({f"model.{wider}": config.model[wider] * chosen.times})
    rounds = max(1, round(config.rounds * budget * config.local_steps / (steps or config.local_steps)))
    config = config.change({"rounds": rounds, "local_steps": steps or config.local_steps})
    job = RECIPES[recipe]().build(config)
    algorithm = make(config, skerry.ist(config.workers, reshuffle=1.0))
    if chosen.distil:
        return train_distilled(config, job, algorithm, rate, chosen.distil)
    model, plan, start = job.model, job.plan, job.start
    sent = 0.0
    if grown:
        small = narrow_model(model, plan, 1 / config.workers, seed)
        first = train_part(config, job, small, Plan.whole(small), skerry.local_sgd(config.workers,
                           local_steps=config.local_steps), 0.0, grown, rate, job.start)  # fmt: skip
        sent = first.state.totals["bytes_due"]
        assignment = algorithm.partition.assign(plan.axes, 0)
        model, start = side_by_side(first.model, model, plan, assignment), None
    result = train_part(config, job, model, plan, algorithm, grown, 1.0, rate, start)
    assert result.score is not None
    return metric_of(result.score), (sent + result.state.totals["bytes_due"]) / 1e6


def main() -> None:
    """Run the variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="local steps, if not the recipe's")
    parser.add_argument("--set", action="append", default=[], help="as of skerry train, for example model.hidden=64")
    parser.add_argument("--rates", default="", help="comma-separated; the recipe's of ist and of narrow by default")
    parser.add_argument("--only", default="", help="variants, separated by ;")
    options = parser.parse_args()
    known = {configure(options.recipe, m, {}).optimizer["lr"] for m in ("ist", "narrow")}
    rates = [float(rate) for rate in options.rates.split(",") if rate] or sorted(known)
    only = options.only.split(";") if options.only else list(VARIANTS)
    if unknown := set(only) - set(VARIANTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: expected of {'; '.join(VARIANTS)}")
    changes = parse_settings(options.set)
    jobs = [(v, r, s) for v in only for r in rates for s in range(options.seeds)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {job: pool.submit(one, options.recipe, *job, options.budget, changes, options.steps) for job in jobs}
        for variant, rate in dict.fromkeys((v, r) for v, r, _ in jobs):
            found = [futures[variant, rate, seed].result() for seed in range(options.seeds)]
            values = [value for value, _ in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(
                f"| {variant} | {rate:g} | {statistics.fmean(values):.4f} | {spread:.4f} | {found[0][1]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
