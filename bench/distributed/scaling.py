"""The cost per worker as workers or widths grow: bytes, memory, time of a step and of a round, beside predictions.

    python bench/distributed/scaling.py [--hidden 1024] [--workers 1,2,4,8,16] [--widths 1,2,4]

An MLP 1024-h-h-16 is trained by IST with one process per worker; new subnets are dealt every round. A tensor with one
dealt dim costs a worker 1/n of it. A tensor with two costs 1/n^2 of it to train, and 1/n to store untrained elements.

- *sent*: bytes that a worker sends in an exchange, counted as they go out, and as ``exchange.traffic`` predicts.
- *memory*: the peak of resident memory above what the process has before training, and as ``rank_memory`` predicts.
- *step*: processor time of a local step, since up to 16 processes share two cores; *round*: wall time.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from random_mlp import mlp_and_plan, random_data, sgd, train
from torch.nn import functional as F

import skerry
from skerry.exchange.owners import owner_dim
from skerry.experiments.models.mlp import MLP
from skerry.training import cost

STEPS, ROUNDS, BATCH = 10, 4, 64


def resident(key: str) -> int:
    """Return bytes of resident memory of this process: VmRSS now, or VmHWM at its peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def step_cpu_time(subnet: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the processor time of a training step in seconds, the least of several."""
    optimizer = sgd(subnet)
    spent = []
    for _ in range(6):
        started = time.thread_time()
        optimizer.zero_grad()
        F.cross_entropy(subnet(x), y).backward()
        optimizer.step()
        spent.append(time.thread_time() - started)
    return min(spent)


def work(runtime: skerry.Processes, hidden: int, out: Path) -> None:
    """Train for a few rounds in one process and write what it took."""
    n, sizes = runtime.num_processes, [1024, hidden, hidden, 16]
    data = random_data(sizes, n, samples=64, batch_size=BATCH)
    ((x, y),) = data.batches(0, 0, 1)
    # What the first step of any network loads for good does not count (torch.optim alone imports 75 MB).
    small = MLP([1024, 8, 8, 16])
    F.cross_entropy(small(x), y).backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    stamps: list[float] = []

    def on_round(session: skerry.Session, record: skerry.training.Record) -> None:
        stamps.append(time.perf_counter())

    result = train(
        runtime, sizes, data, skerry.ist(n, local_steps=STEPS), ROUNDS, [skerry.callbacks.Callback(on_round=on_round)]
    )
    peak = resident("VmHWM") - before
    model, plan = mlp_and_plan(sizes)
    partition = skerry.partitions.Disjoint(n)
    tensors = result.store.sizes
    now = partition.assign(plan.axes, 0)
    subnet = skerry.subnet.extract(model, plan, now.units(runtime.rank))
    step = cost.step_cost(subnet, F.cross_entropy, (x, y), sgd)
    memory = cost.rank_memory(plan, tensors, now, runtime.rank, step)
    planned = 0.0
    for r in range(ROUNDS):
        ends, begins = (partition.assign(plan.axes, min(k, ROUNDS - 1)) for k in (r, r + 1))
        planned += float(skerry.exchange.traffic(plan, tensors, ends, begins).sum())
    subnet = skerry.weights.materialize(subnet, skerry.weights.FromInitializer(subnet, 0))
    step_s = step_cpu_time(subnet, x, y)
    if runtime.rank == 0:
        two_dims = {name for name, t in tensors.items() if owner_dim(plan, name, t.shape) is not None}
        figures = {
            "n": n, "hidden": hidden,
            "one": sum(t.nbytes for name, t in tensors.items() if name not in two_dims),
            "two": sum(tensors[name].nbytes for name in two_dims),
            "sent": result.store.bytes_sent / ROUNDS, "planned": planned / n / ROUNDS,
            "peak": peak, "predicted": memory.peak - memory.buffers + runtime.buffer_bytes,
            "subnet": step.memory, "resting": memory.resting,
            "step_s": step_s, "round_s": (stamps[-1] - stamps[0]) / (ROUNDS - 1),
        }  # fmt: skip
        out.write_text(json.dumps(figures))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--widths", default="1,2,4")
    options = parser.parse_args()
    # Otherwise the allocator keeps freed memory, in pieces of up to 32 MB.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    columns = ["one-dim MB", "two-dim MB", "subnet MB", "resting MB", "peak MB", "predicted", "sent MB", "planned"]
    print("| n | hidden | " + " | ".join(columns) + " | step ms | round s |")
    print("|---:" * (len(columns) + 4) + "|")
    for width in map(int, options.widths.split(",")):
        for n in map(int, options.workers.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "figures.json"
                skerry.launch(work, n, options.hidden * width, out, timeout_s=60.0)
                f = json.loads(out.read_text())
            cells = [f["one"], f["two"], f["subnet"], f["resting"], f["peak"], f["predicted"], f["sent"], f["planned"]]
            row = [str(n), str(f["hidden"]), *(f"{c / 1e6:.2f}" for c in cells)]
            print("| " + " | ".join([*row, f"{f['step_s'] * 1e3:.1f}", f"{f['round_s']:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
