"""Train a language model's recipe by torchft's own DiLoCo and write a curve; started by torchrun, a worker per process.

    SKERRY_DATA=... torchrun --standalone --nproc-per-node 4 bench/distributed/train_torchft.py gpt-shakespeare \\
        --lr .008 --out runs/torchft          # needs: pip install torchft==0.2.0, in an environment of its own

Model, start, batches, schedule, clipping and inner optimizer are those that Skerry's ``diloco`` has in the recipe. Each
process is a replica group of one; the first also runs the lighthouse, which knows the members. ``metrics.jsonl`` has
``time_s`` of the first process since its manager was there, and ``evaluate_s``, the evaluations' part of it.
"""

import argparse
import json
import os
import socket
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.distributed import TCPStore
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo

from skerry import cosine
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configured, make_optimizer
from skerry.model.inputs import call
from skerry.model.tensors import fill_, named_tensors
from skerry.training import evaluate

TIMEOUT = timedelta(minutes=5)


def own_address(other: str) -> str:
    """Return this host's address on the way to ``other``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:  # nothing is sent
        way.connect((other, 9))
        return str(way.getsockname()[0])


def main() -> None:
    """Train as one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--lr", type=float, required=True, help="of the inner optimizer")
    parser.add_argument("--rounds", type=int, help="of 20 steps; default: the recipe's")
    parser.add_argument("--port", type=int, default=29511, help="of the lighthouse, on the first process's host")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = own_address(os.environ["MASTER_ADDR"])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    built = find_recipe(o.recipe)
    config = configured(built, "diloco", {"optimizer.lr": o.lr} | ({"rounds": o.rounds} if o.rounds else {}))
    job = built.build(config)
    assert job.start is not None  # the recipe's model is on meta
    source = job.start(job.model)
    model = fill_(job.model, {name: source.read(name) for name in named_tensors(job.model)})
    steps, period = config.rounds * config.local_steps, config.local_steps
    lighthouse = (
        LighthouseServer(bind=f"[::]:{o.port}", min_replicas=size, join_timeout_ms=60_000) if rank == 0 else None
    )
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=TIMEOUT), load_state_dict=lambda _: None, state_dict=dict, min_replica_size=size,
        use_async_quorum=False, timeout=TIMEOUT, quorum_timeout=TIMEOUT, connect_timeout=TIMEOUT, rank=0, world_size=1,
        store_addr=address, store_port=store.port, replica_id=f"worker{rank}", hostname=address, init_sync=False,
        lighthouse_addr=f"http://{os.environ['MASTER_ADDR']}:{o.port}",
    )  # fmt: skip
    inner = make_optimizer(config)(model)
    outer = torch.optim.SGD(
        model.parameters(), lr=config.outer.lr, momentum=config.outer.momentum, nesterov=config.outer.momentum > 0
    )
    o.out.mkdir(parents=True, exist_ok=True)
    started, evaluate_s = time.perf_counter(), 0.0
    with (
        DiLoCo(manager, [model], inner, outer, sync_every=period),
        open(o.out / "metrics.jsonl" if rank == 0 else os.devnull, "w") as curve,
    ):
        for step, (x, y) in enumerate(job.data.batches(rank, 0, steps)):
            for group in inner.param_groups:
                group["lr"] = o.lr * cosine(step / steps)
            inner.zero_grad()
            job.loss_fn(call(model, x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm or float("inf"))
            inner.step()  # torchft exchanges here
            round, rest = divmod(step + 1, period)
            if rank == 0 and rest == 0 and (round % config.eval_every == 0 or round == config.rounds):
                before = time.perf_counter()
                loss = evaluate(model, job.loss_fn, job.test, batch_size=config.eval_batch_size).loss
                evaluate_s += time.perf_counter() - before
                line = {"round": round - 1, "loss": loss, "evaluate_s": evaluate_s}
                print(json.dumps(line | {"time_s": time.perf_counter() - started}), file=curve, flush=True)
    manager.shutdown()
    if lighthouse is not None:
        time.sleep(2)  # the others still tell it that they end
        lighthouse.shutdown()


if __name__ == "__main__":
    main()
