"""What a worker pays as workers or widths grow: bytes, memory, time of a step and of a round, beside the formulas.

    python bench/growth.py [--hidden 512] [--workers 1,2,4,8,16] [--widths 1,2,4]

An MLP 1024-h-h-16 is trained with one process a worker, dealt anew each round. A tensor of one dealt dim costs a worker
1/n of it, one of two dealt dims 1/n^2 of it to train and 1/n of it to keep what nobody trains.

- *sent*: bytes that a worker sends in an exchange, counted as they go out, and by ``exchange.traffic``.
- *memory*: peak of the process's resident memory over what it has before it keeps anything, and by ``rank_memory``.
- *step*: processor time of a local step, since two cores are shared by up to 16 processes; *round*: wall time.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import skerry
from skerry.exchange.owners import owner_dim
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.plan.table import Plan
from skerry.training import cost

STEPS, ROUNDS, BATCH = 10, 4, 64


def model_of(hidden: int) -> tuple[MLP, Plan]:
    """The MLP on the meta device, and its plan."""
    with torch.device("meta"):
        model = MLP([1024, hidden, hidden, 16])
    return model, Plan.from_rules(model, mlp_rules(2))


def resident(key: str) -> int:
    """Bytes of resident memory of this process: VmRSS now, VmHWM its peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def processor_time_of_a_step(subnet: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Processor time of a training step, the least of several."""
    optimizer = torch.optim.SGD(subnet.parameters(), 0.01, momentum=0.9)
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
    n = runtime.num_processes
    model, plan = model_of(hidden)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(64 * n, 1024, generator=rng), torch.randint(0, 16, (64 * n,), generator=rng)
    data = skerry.Shards(x, y, skerry.split(y, n, "iid", 0), batch_size=BATCH, seed=0)
    # What the first step of any network loads for good (torch.optim alone imports 75 MB) is not the network's.
    small = MLP([1024, 8, 8, 16])
    F.cross_entropy(small(x[:BATCH]), y[:BATCH]).backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    stamps: list[tuple[float, float]] = []

    def on_round(record: skerry.training.Record, state: skerry.checkpoint.State) -> None:
        stamps.append((time.perf_counter(), record.totals["bytes_sent"]))

    result = skerry.train(
        model,
        F.cross_entropy,
        data,
        plan=plan,
        algorithm=skerry.ist(n, local_steps=STEPS),
        optimizer=lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        num_rounds=ROUNDS,
        runtime=runtime,
        start=lambda m: skerry.weights.FromInitializer(m, seed=0),
        on_round=on_round,
    )
    peak = resident("VmHWM") - before
    partition = skerry.partitions.Disjoint(n)
    sizes = result.store.sizes
    now = partition.assign(plan.axes, 0)
    subnet = skerry.subnet.extract(model, plan, now.units(runtime.rank))
    step = cost.step_cost(
        subnet, F.cross_entropy, (x[:BATCH], y[:BATCH]), lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)
    )
    memory = cost.rank_memory(plan, sizes, now, runtime.rank, step)
    planned = 0.0
    for r in range(ROUNDS):
        ends, begins = (partition.assign(plan.axes, min(k, ROUNDS - 1)) for k in (r, r + 1))
        planned += float(skerry.exchange.traffic(plan, sizes, ends, begins).sum())
    subnet = skerry.weights.materialize(subnet, skerry.weights.FromInitializer(subnet, 0))
    step_s = processor_time_of_a_step(subnet, x[:BATCH], y[:BATCH])
    if runtime.rank == 0:
        figures = {
            "n": n, "hidden": hidden,
            "one": sum(t.nbytes for name, t in sizes.items() if owner_dim(plan, name, t.shape) is None),
            "two": sum(t.nbytes for name, t in sizes.items() if owner_dim(plan, name, t.shape) is not None),
            "sent": result.store.bytes_sent / ROUNDS, "planned": planned / n / ROUNDS,
            "peak": peak, "predicted": memory.peak - memory.buffers + runtime.buffer_bytes,
            "subnet": step.memory, "resting": memory.resting,
            "step_s": step_s, "round_s": (stamps[-1][0] - stamps[0][0]) / (ROUNDS - 1),
        }  # fmt: skip
        out.write_text(json.dumps(figures))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--widths", default="1,2,4")
    options = parser.parse_args()
    # Else the allocator keeps what steps have freed, in pieces, up to 32 MB each.
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
