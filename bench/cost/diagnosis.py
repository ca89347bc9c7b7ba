"""What the diagnosis of a training run shows, and what it costs.

    python bench/cost/diagnosis.py measures     # the table of docs/your-run.md: digits, a minute
    python bench/cost/diagnosis.py cost         # the fraction of a round that the diagnosis takes

*measures*: ``digits-mlp`` (1,437 images of scikit-learn, 4 workers, 20 rounds of 20 local steps, seed 0) with more and
more label skew and with other settings. *cost*: the MLP of ``fashion-mlp`` (784-1024-1024-10, batch 128, 4 workers one
after the other) on random data: the processor time of all that ``Observer`` does, as a fraction of the rounds. Both
times are of the same rounds and one thread, so other jobs on the machine affect both alike.
"""

import argparse
import time
import warnings
from typing import Any

import torch
from torch.nn import functional as F

import skerry
from skerry.experiments.methods import build
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes import RECIPES
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.experiments.runs.execute import SCHEDULES, configure, make_optimizer
from skerry.training.diagnosis.observer import Observer

HEALTHY = ("ist", "relay", "local_sgd", "narrow", "fedrolex", "heterofl", "federated_dropout", "diloco", "ensemble")
SPLITS = ("iid", "dirichlet:10", "dirichlet:1", "dirichlet:0.3", "dirichlet:0.1", "by_label")
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("local_sgd", {"schedule": "constant", "split": "by_label", "local_steps": 200}),
    ("local_sgd", {"schedule": "constant", "split": "iid", "local_steps": 200}),
    ("federated_dropout", {"partition.fractions": [0.05] * 4, "rounds": 5}),
]


def measure(method: str, settings: dict[str, Any]) -> None:
    """Train, and print a row of the table."""
    config = configure("digits-mlp", method, {"rounds": 20, "local_steps": 20, **settings})
    job = RECIPES["digits-mlp"]().build(config)
    result = skerry.train(
        job.model, job.loss_fn, job.data, plan=job.plan, algorithm=build(config),
        optimizer=make_optimizer(config), num_rounds=config.rounds, schedule=SCHEDULES[config.schedule],
        seed=config.seed, test=skerry.training.Test(*job.test, every=5, batch_size=config.eval_batch_size),
        start=job.start,
    )  # fmt: skip
    seen = [record.diagnosis for record in result.history]
    assert result.score is not None
    drifts = sorted(each.drift for each in seen if each.drift is not None)
    drift = f"{drifts[0]:.1f} to {drifts[-1]:.1f}" if drifts else "-"  # a relay averages nothing
    worst = max((e.full_loss / e.subnet_loss for e in seen if e.full_loss and e.subnet_loss), default=float("nan"))
    kinds = ", ".join(kind for each in seen for kind in each.warnings) or "-"
    least = "-" if seen[-1].least_trained is None else seen[-1].least_trained
    changed = ", ".join(f"{key} {value}" for key, value in settings.items()) or "-"
    print(
        f"| {method} | {changed} | {result.score.accuracy:.4f} | {seen[0].label_skew:.2f} | {seen[0].dispersion:.2f} | "
        f"{drift} | {worst:.2f} | {least} | {kinds} |",
        flush=True,
    )


def cost(rounds: int = 30, workers: int = 4) -> None:
    """Print the fraction of a round that the diagnosis takes."""
    spent = dict.fromkeys(("begin_worker", "end_worker", "end_round"), 0.0)
    for name in spent:
        inner = getattr(Observer, name)

        def timed(self: Observer, *args: Any, name: str = name, inner: Any = inner) -> Any:
            started = time.process_time()
            result = inner(self, *args)
            spent[name] += time.process_time() - started
            return result

        setattr(Observer, name, timed)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(8192, 784, generator=rng), torch.randint(0, 10, (8192,), generator=rng)
    data = skerry.Shards(x, y, skerry.split(y, workers, "iid", 0), batch_size=128, seed=0)
    for steps in (5, 20, 50):
        model = MLP([784, 1024, 1024, 10])
        plan = skerry.Plan.from_rules(model, mlp_rules(2))
        ends: list[tuple[float, float]] = []

        def on_round(session: skerry.Session, record: object, ends: list[tuple[float, float]] = ends) -> None:
            ends.append((time.process_time(), sum(spent.values())))

        skerry.train(
            model, F.cross_entropy, data, plan=plan, algorithm=skerry.ist(workers, local_steps=steps),
            optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), num_rounds=rounds,
            test=(x[:1000], y[:1000]),
            verify=False, callbacks=[skerry.callbacks.Callback(on_round=on_round)],
        )  # fmt: skip
        (first, began), (last, ended) = ends[0], ends[-2]  # the last round also evaluates
        ours, all_of_it = ((b - a) * 1000 / (len(ends) - 2) for a, b in ((began, ended), (first, last)))
        print(f"{steps} local steps: {ours:.1f} of {all_of_it:.0f} ms per round, {ours / all_of_it:.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measures", "cost"])
    what = parser.parse_args().what
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", skerry.training.TheoryWarning)
    if what == "cost":
        cost()
    else:
        print("| method | settings | accuracy | skew | disagreement | drift | full/subnets | least | warnings |")
        print("|---|---|---:|---:|---:|---:|---:|---:|---|")
        for method in HEALTHY:
            measure(method, {})
        for how in SPLITS[1:]:
            for method in ("ist", "local_sgd"):
                measure(method, {"split": how})
        for method, settings in WRONG:
            measure(method, settings)
