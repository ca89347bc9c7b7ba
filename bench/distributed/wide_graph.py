"""A graph network whose state is many times a worker's memory limit: trained by small workers, and run on all nodes.

    python bench/distributed/wide_graph.py                          # 8 workers, GCN, 2 layers (Linux, root)
    python bench/distributed/wide_graph.py --quick                  # 4 workers, 256 wide, a minute

Each worker is a process on a host of its own (``hosts.py``), whose memory cgroup kills it at its limit: ``--limit`` MiB
above what a process needs that only imports torch. Everything else counts: Skerry and PyTorch Geometric themselves, the
graph, gloo.

The model is PyTorch Geometric's GCN on WordNet, on torch's meta device, so no process ever has it. ``discover`` finds
its plan there. Workers train the nets of a relay on clusters of their own (METIS), with Adam; features are a sparse
matrix. Then each worker runs its net for some test nodes (``skerry.graphs.infer``), and the mean of all is scored.
*State* is model, gradients and Adam's two moments in float32. Where the model has more than two layers, it has weights
between nets as well, which a relay does not train and ``"method": "ist"`` does; then nothing is scored, since a weight
matrix of the whole model does not fit in a worker.

Then one process with the same limit trains the whole model (``single``), on the same batches.
"""

import argparse
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from hosts import why_not
from small_memory import MIB, TIMEOUT_S, Run, Stages, Watched, footprint, start, what_happened
from torch import nn
from torch.nn import functional as F

import skerry
from skerry.experiments.datasets.graphs import wordnet
from skerry.model.tensors import named_tensors
from skerry.weights import FromInitializer


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained, and how.

    Attributes:
        workers: n.
        method: ``relay`` or ``ist``.
        width: H, of each hidden layer.
        layers: of the GCN, with the output.
        parts, per_batch: clusters in all, and in each batch.
        limit: bytes above importing torch.
        scored: test nodes, drawn at random, that get an accuracy; 0: none.
        everyone: whether the model runs on all nodes, and all test nodes are scored.
        max_bytes: of ``infer``.
        verify: whether the plan is, which takes seven times a net's weights.
    """

    workers: int = 8
    method: Literal["relay", "ist"] = "relay"
    width: int = 8192
    layers: int = 2
    parts: int = 1500
    per_batch: int = 15
    rounds: int = 10
    local_steps: int = 50
    limit: int = 700 * MIB
    scored: int = 1000
    everyone: bool = False
    max_bytes: int = 64 * MIB
    verify: bool = True
    buffers: int = 16 * MIB
    lr: float = 0.003
    seed: int = 0


def graph_and_model(setup: Setup) -> tuple[Any, nn.Module, skerry.Plan]:
    """Return WordNet with sparse features, the model on meta, and its plan."""
    from torch_geometric.nn import GCN

    warnings.filterwarnings("ignore", category=UserWarning)  # sparse CSR is in beta
    net = wordnet()
    with torch.device("meta"):
        model = GCN(net.num_features, setup.width, setup.layers, net.num_classes, dropout=0.3)
    example = net.x(torch.arange(16)), torch.stack([torch.arange(16), torch.arange(1, 17) % 16])
    return net.data(), model, skerry.discover(model, example)


def work(role: str, setup: Setup, out: Path) -> None:
    """Run one process: a worker, or ``single``, which trains everything."""
    stages = Stages(out / f"{role}-{os.environ['RANK']}.json")
    stages.enter("import")
    torch.set_num_threads(1)
    import torch_geometric.nn  # noqa: F401

    stages.enter("plan and data")
    graph, model, plan = graph_and_model(setup)
    single = role == "single"
    num = 1 if single else setup.workers
    data = skerry.graphs.clusters(graph, num, setup.parts, setup.per_batch, "random", seed=setup.seed)
    runtime = None
    stages.enter("start")
    if not single:
        dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
        runtime = Watched(stages, setup.buffers)
    steps = {"local_steps": setup.local_steps}
    method = getattr(skerry, setup.method)
    result = skerry.train(
        model,
        F.cross_entropy,
        data,
        plan=plan,
        algorithm=skerry.algorithms.single(**steps) if single else method(num, **steps),
        optimizer=lambda net: torch.optim.Adam(net.parameters(), setup.lr),
        num_rounds=setup.rounds,
        runtime=runtime,
        start=lambda m: FromInitializer(m, seed=setup.seed),
        verify=setup.verify,
    )
    stages.record["train_loss"] = [record.train_loss for record in result.history]
    if setup.scored and setup.method == "relay":
        stages.enter("inference")
        every = graph.test_mask.nonzero().flatten()
        some = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[: setup.scored]]
        nodes = torch.arange(graph.num_nodes) if setup.everyone else some
        logits = skerry.graphs.infer(result.full, graph, nodes=nodes, max_bytes=setup.max_bytes, folder=out)
        right = logits.argmax(1) == graph.y[nodes]
        stages.record["accuracy"] = float(right[graph.test_mask[nodes]].float().mean())
    stages.record["sent"] = result.state.totals["bytes_sent"]
    stages.enter("end")


def state_bytes(setup: Setup) -> int:
    """Return the bytes of model, gradients and Adam's moments."""
    model = graph_and_model(setup)[1]
    return 4 * sum(tensor.nbytes for tensor in named_tensors(model).values())


def report(setup: Setup, runs: dict[str, Run], base: dict[str, int], state: int) -> list[str]:
    """Return the lines that are printed at the end of a width."""
    lines = [
        "",
        f"GCN, {setup.layers} layers, {setup.width} wide, {setup.method}, {setup.workers} workers, "
        f"{setup.rounds} rounds of {setup.local_steps} steps, "
        f"{setup.per_batch} of {setup.parts} clusters a batch: state {state / MIB:.0f} MiB, "
        f"{state / setup.limit:.1f} times the {setup.limit / MIB:.0f} MiB that a worker may use above importing torch "
        f"({base['cgroup'] / MIB:.0f} MiB).",
        "",
        "| who | outcome | peak of the cgroup above importing torch, MiB | sent, MB per worker | training loss | "
        "test accuracy | s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, run in runs.items():
        first = run.records[0]
        peak = f"{(max(run.peaks) - base['cgroup']) / MIB:.0f}"
        sent = f"{first['sent'] / 1e6:.0f}" if "sent" in first else "-"
        loss = f"{first['train_loss'][-1]:.3f}" if first.get("train_loss") else "-"
        score = f"{first['accuracy']:.3f}" if "accuracy" in first else "-"
        lines.append(f"| {name} | {what_happened(run)} | {peak} | {sent} | {loss} | {score} | {run.seconds:.0f} |")
    workers = runs["workers"]
    lines += ["", "| stage | times | anonymous memory above importing torch, MiB | s |", "|---|---:|---:|---:|"]
    for stage in dict.fromkeys(stage for record in workers.records for stage in record["stages"]):
        times, peak, seconds = (workers.most(stage, what) for what in ("times", "peak", "seconds"))
        lines.append(f"| {stage} | {times:.0f} | {(peak - base['RssAnon']) / MIB:.0f} | {seconds:.1f} |")
    return lines


def main() -> None:
    """Run everything and print the tables."""
    options = arguments()
    given = json.loads(options.setup)
    if options.role:
        work(options.role, Setup(**given), options.out)
        return
    if (reason := why_not(memory=True)) is not None:
        print(f"skipped: hosts with memory limits can't be made here: {reason}")
        return
    if options.quick:
        given = {"workers": 4, "width": 256, "rounds": 2, "local_steps": 5} | given
    setup, out = Setup(**given), options.out.absolute()
    base = footprint()["import"]
    memory, runs = base["cgroup"] + setup.limit, dict[str, Run]()
    for name, role in (("workers", "worker"), ("one process", "single"))[: 1 if options.ours else 2]:
        runs[name] = start(__file__, role, setup, 1 if role == "single" else setup.workers, memory, out)
        print(f"{name}: {what_happened(runs[name])}, {runs[name].seconds:.0f} s", flush=True)
    print("\n".join(report(setup, runs, base, state_bytes(setup))))
    if all(run.good for run in runs.values()):
        shutil.rmtree(out)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--ours", action="store_true", help="without the single process")
    parser.add_argument("--setup", default="{}", help="fields of Setup that differ, as JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/wide-graph"))
    parser.add_argument("--role", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
