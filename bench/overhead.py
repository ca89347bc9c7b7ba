"""Where a round of the `processes` runtime spends its time, in the headline's IST run: milliseconds a round.

    .venv/bin/python bench/overhead.py      # about half a minute, on an idle machine

`waiting` is the time until the slowest worker is done, in the mean over workers; it is part of `exchange`.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from skerry import Processes, experiment, launch, loop
from skerry.recipes import RECIPES
from skerry.train import train

ROUNDS = 40


def work(runtime: Processes) -> None:
    """Train in every process with clocks around the stages; the first one prints."""
    torch.set_num_threads(1)
    spent: dict[str, float] = defaultdict(float)

    def clocked(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **more)
            spent[stage] += time.perf_counter() - started
            return result

        return run

    def exchange(*args: Any) -> Any:
        handovers = plain_exchange(*args)
        local = [h.local_s for h in handovers]
        spent["waiting"] += max(local) - sum(local) / len(local)
        return handovers

    plain_exchange = runtime.exchange
    runtime.exchange = clocked("exchange", exchange)  # type: ignore[method-assign]
    for stage in ("extract", "aggregate_", "is_finite"):
        setattr(loop, stage, clocked(stage, getattr(loop, stage)))
    config = experiment.configure("fashion-mlp", "ist", {"rounds": ROUNDS, "runtime": "processes"})
    job = RECIPES["fashion-mlp"]().build(config)
    result = train(
        job.model, job.loss_fn, job.data, plan=job.plan, algorithm=experiment.METHODS["ist"](config),
        optimizer=experiment.make_optimizer(config), num_rounds=ROUNDS, runtime=runtime,
    )  # fmt: skip
    totals = result.state.totals
    stages = {"round": totals["time_s"], "local steps": totals["local_s"], **spent}
    if runtime.rank == 0:
        for stage, seconds in stages.items():
            print(f"{stage:12} {1e3 * seconds / ROUNDS:7.1f} ms   {seconds / totals['time_s']:.1%}")


if __name__ == "__main__":
    launch(work, 4)
