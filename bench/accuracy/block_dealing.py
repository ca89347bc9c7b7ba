"""Blocks or units dealt once, each to some of the workers, and averaged in every step.

    SKERRY_DATA=... python bench/accuracy/block_dealing.py --deal layers --fraction .5 --rate .008

In the manner of Singh et al.: Model Parallelism With Subnetwork Data Parallelism, 2025, arXiv 2507.09029, with its
forward masks: a worker computes only what it holds. Differs from the paper: each worker's AdamW takes a step and then
weights are averaged over their holders, where the paper averages gradients. The model is that of ``gpt-shakespeare``,
``--deal layers`` with eight layers of a quarter of the heads and hidden units (as in ``resist``), so of the same size.
As many operations per worker as the recipe's methods; the row goes to those of ``language_models.py``.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from skerry import cosine
from skerry.algorithm import Algorithm
from skerry.experiments.recipes import find_recipe
from skerry.experiments.recipes.next_token import LAYERS
from skerry.experiments.runs.execute import configured, make_optimizer
from skerry.partitions.assignment import Assignment, none_held
from skerry.plan.dims import Axis
from skerry.training import Test, train

RECIPE, TFLOP = "gpt-shakespeare", 0.61


@dataclass(frozen=True)
class Once:
    """Each worker holds ``fraction`` of every axis, the same in all rounds; numbers of holders differ by at most one.

    The units of an axis are on a circle, and worker w of n begins at the w-th n-th of it.
    """

    num_workers: int
    fraction: float
    covers: ClassVar[bool] = True

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return who holds which units."""
        held = none_held(self.num_workers, axes)
        for axis in axes:
            num = max(math.ceil(axis.num_units / self.num_workers), round_half_up(self.fraction * axis.num_units))
            for worker in range(self.num_workers):
                first = worker * axis.num_units // self.num_workers
                held[worker, axis.start + torch.arange(first, first + num) % axis.num_units] = True
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return the fraction of workers that hold a unit."""
        return self.assign(axes, round).share()


def round_half_up(x: float) -> int:
    """Return the nearest whole number."""
    return int(x + 0.5)


def measure(deal: str, fraction: float, rate: float, length: float, seed: int) -> dict[str, Any]:
    """Train once and return the row."""
    settings = {"optimizer.lr": rate, "seed": seed, **(LAYERS if deal == "layers" else {})}
    built = find_recipe(RECIPE)
    config = configured(built, "ist", settings)
    job = built.build(config)
    algorithm = Algorithm(
        name="dealt once", partition=Once(config.workers, fraction), local_steps=1, optimizer_state="stay"
    )

    def trained(rounds: int) -> Any:
        return train(
            job.model, job.loss_fn, job.data, plan=job.plan, algorithm=algorithm, optimizer=make_optimizer(config),
            num_rounds=rounds, schedule=cosine, seed=seed, start=job.start, **config.steps,
            test=Test(*job.test, metrics=job.metrics, every=0, batch_size=config.eval_batch_size),
        )  # fmt: skip

    flop = trained(1).state.totals["flop"]
    steps, started = round(length * TFLOP * 1e12 / flop), time.perf_counter()
    job = built.build(config)  # the first call has trained the model
    result = trained(steps)
    totals, cost = result.state.totals, asdict(result.step_cost)
    memory = {name: cost[name] for name in ("weights", "gradients", "optimizer", "activations")}
    return {
        "name": f"{deal} dealt once, to {fraction:.0%}", "rate": rate, "length": length, "seed": seed,
        "loss": result.score.loss, "perplexity": result.score.metrics["perplexity"],
        "train_loss": result.history[-1].train_loss, "bytes_due": totals["bytes_due"], "flop": totals["flop"],
        "memory": memory, "time_s": time.perf_counter() - started, "steps": steps,
    }  # fmt: skip


def main() -> None:
    """Run once, and add the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deal", choices=("layers", "units"), required=True)
    parser.add_argument("--fraction", type=float, default=0.5, help="of each axis, on every worker")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row = measure(o.deal, o.fraction, o.rate, o.length, o.seed)
    o.out.mkdir(parents=True, exist_ok=True)
    with (o.out / f"{RECIPE}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    main()
