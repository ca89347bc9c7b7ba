"""Train a wide MLP by one of Skerry's methods and write a curve as ``train_rival.py`` does; started by torchrun.

    SKERRY_DATA=... torchrun --standalone --nproc-per-node 4 bench/distributed/train_skerry.py --task speech \\
        --method ist --local-steps 20 --lr 0.1 --hidden 2048 --layers 3 --steps 400 --out runs/ist.jsonl

``train_s`` is the first process's wall time without evaluations; ``bytes_model`` is what it sent in exchanges. No
process holds the full model, which starts on the meta device.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from tasks import TASKS, task

import skerry
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.randomness import seed_of


def main() -> None:
    """Train and write the curve."""
    options = arguments()
    torch.set_num_threads(1)
    runtime = skerry.Processes.join(60.0, wire=options.wire)
    workers = runtime.num_processes
    job = task(options.task, workers, options.hidden, options.layers, options.batch_size, options.seed)
    with torch.device("meta"):
        model = MLP(job.model_sizes)
    common = {"local_steps": options.local_steps, "overlap": options.overlap}
    methods = {
        "ist": lambda: skerry.ist(workers, seed=options.seed, reshuffle=options.reshuffle, **common),
        "narrow": lambda: skerry.narrow(workers, **common),
        "local_sgd": lambda: skerry.algorithms.local_sgd(workers, **common),
    }
    lines = []

    def on_round(session: skerry.Session, record: skerry.training.Record) -> None:
        if record.score is None:
            return
        totals = record.totals
        lines.append(
            {
                "step": (record.round + 1) * options.local_steps,
                "train_s": totals["time_s"] - totals["evaluate_s"] - totals["checkpoint_s"],
                "bytes_model": totals["bytes_sent"],
                "accuracy": record.score.accuracy,
                "loss": record.score.loss if math.isfinite(record.score.loss) else None,
                "train_loss": record.train_loss if math.isfinite(record.train_loss) else None,
                "local_s": totals["local_s"],
                "stopped": False,
            }
        )
        if runtime.rank == 0:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))

    result = skerry.train(
        model,
        job.loss_fn,
        job.shards,
        plan=skerry.Plan.from_rules(model, mlp_rules(options.layers)),
        algorithm=methods[options.method](),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), options.lr, momentum=options.momentum),
        num_rounds=options.steps // options.local_steps,
        schedule=skerry.cosine,
        seed=options.seed,
        test=skerry.training.Test(*job.test, every=options.eval_every, batch_size=4096),
        runtime=runtime,
        start=lambda m: skerry.weights.FromInitializer(m, seed_of(options.seed, "model")),
        callbacks=[skerry.callbacks.Callback(on_round=on_round)],
    )
    if runtime.rank == 0:
        print(f"{options.method}: {result.score}", flush=True)
    runtime.close()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--method", choices=["ist", "narrow", "local_sgd"], default="ist")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--local-steps", type=int, default=20)
    parser.add_argument("--reshuffle", type=float, default=1.0)
    parser.add_argument("--overlap", type=int, default=0, help="steps during which shared weights are averaged")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--eval-every", type=int, default=1, help="rounds between evaluations")
    parser.add_argument("--wire", choices=["exact", "bf16"], default="exact")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
