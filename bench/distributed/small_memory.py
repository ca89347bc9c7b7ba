"""Weights of 8 times a worker's memory limit: trained, evaluated, checkpointed, resumed, exported by small workers.

    python bench/distributed/small_memory.py             # 16 workers (Linux, root)
    python bench/distributed/small_memory.py --quick     # 4 workers, small sizes, a minute or two

Each worker is a process on a host of its own (``hosts.py``), whose memory cgroup kills it at its limit: M bytes above
the footprint. The footprint is what a process needs that imports torch and takes one step of a tiny net in plain
PyTorch (the first optimizer imports another third of PyTorch). Skerry's own modules and gloo's connections count
against M.

The model is a deep residual MLP on synthetic data. Two axes are dealt out: the stream, and the hidden units of blocks
(unit k of all blocks goes together). So nearly all elements have two dealt dims: a worker trains 1/n^2 of them and is
home to 1/n. Few steps are taken, since the purpose is memory.

The first start is interrupted after a checkpoint. The next one resumes from it, with the same bits, and exports at its
end. For each stage the table has the highest anonymous memory of any worker above the footprint (sampled every 10 ms;
mapped files are left out, since a cgroup may drop them: a resumed worker maps its checkpoint), the prediction of
``cost.rank_memory``, and the bound: subnet (weights, gradients, optimizer, activations) + 1/n of the model + 64 MiB.
The proof that the limit holds is the cgroup's: no worker was killed.

Then the same model is trained by DDP and by FSDP (``fully_shard`` of each matrix, from meta), and by ``narrow``, a net
of 1/n of the widths, with the same limits; and by FSDP without a limit, for its peak. None has momentum, which would
cost FSDP 1/n more and Skerry almost nothing. All use the same malloc settings, without which glibc keeps freed memory.
"""

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hosts import Hosts, kill, why_not
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.model.tensors import named_tensors
from skerry.plan import In, Out
from skerry.randomness import generator
from skerry.runtimes.distributed.sharded import Sharded
from skerry.training import cost

MIB = 2**20
TIMEOUT_S = 3600.0
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
SPREAD_S = 10.0
"""When a worker has died, the others have this long to notice."""

FOOTPRINT = """
import json, sys
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {key: int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "RssAnon")}
import torch
if sys.argv[1] == "step":
    torch.set_num_threads(1)
    net = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    torch.nn.functional.cross_entropy(net(torch.randn(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
    optimizer.step()
print(json.dumps(memory()))
"""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained, the number of workers, and their memory limit.

    Attributes:
        workers: n.
        limit: M, bytes per worker above the footprint.
        times: the weights are at least this many times M.
        width: of the stream and of each block.
        rounds: in total; the first start is interrupted after ``stop`` of them.
        buffers: the limit for buffers of an exchange, bytes.
    """

    workers: int = 16
    limit: int = 192 * MIB
    times: float = 8.0
    width: int = 2048
    features: int = 64
    classes: int = 10
    batch_size: int = 64
    local_steps: int = 20
    rounds: int = 4
    stop: int = 2
    buffers: int = 16 * MIB
    lr: float = 0.05
    seed: int = 0

    @property
    def blocks(self) -> int:
        """The smallest number that makes the weights at least ``times`` M."""
        return math.ceil(self.times * self.limit / (2 * 4 * self.width**2))

    def model(self) -> "Net":
        """Return the model, on the current default device."""
        return Net(self.features, self.width, self.blocks, self.classes)

    def plan(self, model: nn.Module) -> skerry.Plan:
        """Return the plan: both dims of every inner matrix are dealt out."""
        rules: dict[str, Any] = {
            "stem": Out("stream"), "out": In("stream"), "blocks.*.up": [In("stream"), Out("hidden")],
            "blocks.*.norm": Out("hidden"), "blocks.*.down": [In("hidden"), Out("stream")],
        }  # fmt: skip
        return skerry.Plan.from_rules(model, rules)

    def data(self) -> tuple[skerry.Shards, tuple[Tensor, Tensor]]:
        """Return noisy points around one centre per class: the workers' data, and a test set."""
        rng = generator(self.seed, "blobs")
        centres = torch.randn(self.classes, self.features, generator=rng)
        y = torch.randint(self.classes, (4096 + 512,), generator=rng)
        x = centres[y] + 2 * torch.randn(len(y), self.features, generator=rng)
        parts = skerry.split(y[:4096], self.workers, "iid", self.seed)
        shards = skerry.Shards(x[:4096], y[:4096], parts, batch_size=self.batch_size, seed=self.seed)
        return shards, (x[4096:], y[4096:])

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer, the same for all methods."""
        return torch.optim.SGD(net.parameters(), self.lr)


class Block(nn.Module):
    """x + down(relu(norm(up(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width) to (B, width)."""
        down: Tensor = self.down(F.relu(self.norm(self.up(x))))
        return x + down


class Net(nn.Module):
    """A residual MLP."""

    def __init__(self, features: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, features) to (B, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(x)
        return logits


# --- in a worker ------------------------------------------------------------------------------------------------------


class Stages:
    """Records what each stage of this process took: peak memory, seconds, bytes sent."""

    def __init__(self, path: Path) -> None:
        self.record: dict[str, Any] = {"stages": {}, "now": "", "train_loss": [], "score": []}
        self._path = path
        self._began = (time.perf_counter(), sent_bytes())
        self._peak = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, anonymous_bytes())
            time.sleep(0.01)

    def enter(self, name: str) -> None:
        """End a stage and begin the next; a stage that is entered again adds up, and has one peak."""
        now = (time.perf_counter(), sent_bytes())
        if self.record["now"]:
            row = self.record["stages"].setdefault(
                self.record["now"], {"times": 0, "peak": 0, "seconds": 0.0, "sent": 0}
            )
            row["times"] += 1
            row["peak"] = max(row["peak"], self._peak, anonymous_bytes())
            row["seconds"] += now[0] - self._began[0]
            row["sent"] += now[1] - self._began[1]
        self.record["now"], self._began, self._peak = name, now, 0
        self._path.write_text(json.dumps(self.record))


def anonymous_bytes() -> int:
    """Return the resident memory of this process that is not mapped from a file."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def sent_bytes() -> int:
    """Return the bytes this host has sent."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("eth0:"))


class Interrupted(Exception):
    """Ends the first start."""


class Watched(skerry.Processes):
    """The runtime, recording its stages."""

    def __init__(self, stages: Stages, buffers: int) -> None:
        super().__init__(buffer_bytes=buffers)
        self._stages = stages

    def at(self, round: int, stage: str) -> None:
        """Note the stage."""
        self._stages.enter(stage)
        super().at(round, stage)


class Stopped(Watched):
    """Ends the start before round ``stop``, with a digest of what there was."""

    def __init__(self, stages: Stages, buffers: int, stop: int | None) -> None:
        super().__init__(stages, buffers)
        self._stop = stop
        self.store: Sharded | None = None

    def keep(self, *args: Any) -> Sharded:
        """Make the store and keep a reference to it."""
        self.store = super().keep(*args)
        return self.store

    def at(self, round: int, stage: str) -> None:
        """Note the stage, or end."""
        if stage == "local steps":
            if "began" not in self._stages.record:
                self._stages.record["began"] = [round, self.digest()]
            if round == self._stop:
                self._stages.record["ended"] = [round, self.digest()]
                raise Interrupted
        super().at(round, stage)

    def digest(self) -> str:
        """Return a digest of everything this process stores."""
        assert self.store is not None
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.store.shards().items()):
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def train(setup: Setup, stages: Stages, out: Path, *, stop: int | None, narrow: bool = False) -> None:
    """Train with Skerry: up to the interruption, or to the end with an export."""
    runtime = Stopped(stages, setup.buffers, stop)
    with torch.device("meta"):
        model = setup.model()
    checkpoints = skerry.Checkpoints(folder=out / "run", run="small memory", every_s=math.inf, resume=True)
    shards, test = setup.data()
    method = (skerry.narrow if narrow else skerry.ist)(setup.workers, local_steps=setup.local_steps)

    def on_round(session: skerry.Session, record: skerry.training.Record) -> None:
        stages.record["train_loss"].append(record.train_loss)
        if record.score is not None:
            stages.record["score"].append(asdict(record.score))
        checkpoints.every_s = 0.0 if session.state.round == setup.stop else math.inf

    try:
        result = skerry.train(
            model,
            F.cross_entropy,
            shards,
            plan=setup.plan(model),
            algorithm=method,
            optimizer=setup.optimizer,
            num_rounds=setup.rounds,
            seed=setup.seed,
            test=skerry.training.Test(*test, every=setup.stop),
            runtime=runtime,
            start=lambda m: skerry.weights.FromInitializer(m, setup.seed),
            checkpoints=None if narrow else checkpoints,
            callbacks=[skerry.callbacks.Callback(on_round=on_round)],
        )
        if not narrow:
            result.export(out / "export", shard_bytes=1)  # one tensor per file
    except Interrupted:
        pass
    stages.enter("end")
    runtime.close()


def rival(setup: Setup, stages: Stages, method: str) -> None:
    """Train with DDP or FSDP for a few steps."""
    rank = dist.get_rank()
    stages.enter("model")
    module = ddp(setup, stages) if method == "ddp" else fsdp(setup, stages)
    optimizer = setup.optimizer(module)
    shards, _ = setup.data()
    stages.enter("first step")
    for step, (x, y) in enumerate(shards.batches(rank, 0, 1 + setup.stop)):
        if step == 1:
            stages.enter("steps")
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        stages.record["train_loss"].append(loss.item())
    stages.enter("end")
    dist.destroy_process_group()


def ddp(setup: Setup, stages: Stages) -> nn.Module:
    """Return a replica for each worker."""
    model = setup.model()
    stages.enter("wrap")
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def fsdp(setup: Setup, stages: Stages) -> nn.Module:
    """Return the model, sharded matrix by matrix; no process makes all of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        model = setup.model()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    rng = generator(setup.seed, "fsdp", dist.get_rank())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if ".norm." in name:
            local.detach().fill_(1.0 if name.endswith(("weight", "running_var")) else 0.0)
        else:
            bound = setup.width**-0.5
            local.detach().uniform_(-bound, bound, generator=rng)
    return model


def work(role: str, setup: Setup, out: Path) -> None:
    """Run one worker."""
    stages = Stages(out / f"{role}-{os.environ['RANK']}.json")
    stages.enter("start")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    if role in ("ddp", "fsdp"):
        rival(setup, stages, role)
    else:
        train(setup, stages, out, stop=setup.stop if role == "first" else None, narrow=role == "narrow")


# --- around the workers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The outcome of one start.

    Attributes:
        codes: exit codes.
        killed: the number of processes of each host that were killed at its limit.
        peaks: of each host's cgroup, bytes.
        records: what each worker recorded.
    """

    codes: list[int]
    killed: list[int]
    peaks: list[int]
    records: list[dict[str, Any]]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether all workers finished."""
        return not any(self.codes) and not any(self.killed)

    def most(self, stage: str, what: str) -> float:
        """Return the highest figure of any worker."""
        return max((t["stages"][stage][what] for t in self.records if stage in t["stages"]), default=math.nan)


def start(script: str, role: str, setup: Any, num: int, memory: int | None, out: Path) -> Run:
    """Start ``num`` processes of ``script``, each on a host of its own, and wait."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{role}-*"):
        left.unlink()
    began = time.monotonic()
    with Hosts(num, memory=memory) as hosts:
        command = [sys.executable, script, "--role", role, "--setup", json.dumps(asdict(setup)), "--out", str(out)]
        env = {
            "WORLD_SIZE": str(num), "MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", **MALLOC,
        }  # fmt: skip
        processes = []
        for k in range(num):
            with (out / f"{role}-{k}.log").open("w") as log:
                processes.append(hosts.popen(k, command, env=env | {"RANK": str(k)}, log=log))
        wait(processes, lambda: kill(hosts.names))
        peaks = [peak or 0 for peak in hosts.peak_memory()]
        run = Run([p.wait() for p in processes], hosts.out_of_memory(), peaks, [], time.monotonic() - began)
    files = [out / f"{role}-{k}.json" for k in range(num)]
    records = [json.loads(f.read_text()) if f.exists() else {"stages": {}, "now": "import"} for f in files]
    return replace(run, records=records)


def wait(processes: list[subprocess.Popen[str]], end: Callable[[], None]) -> None:
    """Wait for all; after a failure, only as long as the others need to notice."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(p.poll() is None for p in processes):
        if any(p.poll() not in (None, 0) for p in processes):
            deadline = min(deadline, time.monotonic() + SPREAD_S)
        if time.monotonic() > deadline:
            end()
        time.sleep(0.2)


def footprint() -> dict[str, dict[str, int]]:
    """Measure a process that only imports torch, and one that takes a step as well."""
    found: dict[str, dict[str, int]] = {}
    for _ in range(2):  # the first time reads the files
        with Hosts(2, memory=2**31) as hosts:
            for k, what in enumerate(("import", "step")):
                done = hosts.run(k, [sys.executable, "-c", FOOTPRINT, what], env={"OMP_NUM_THREADS": "1", **MALLOC})
                done.check_returncode()
                found[what] = {**json.loads(done.stdout), "cgroup": hosts.peak_memory()[k] or 0}
    return found


def prediction(setup: Setup) -> tuple[cost.RankMemory, int]:
    """Return the predicted memory of a worker (all have the same) and the bytes of the model."""
    with torch.device("meta"):
        model = setup.model()
    plan, (shards, _) = setup.plan(model), setup.data()
    assignment = skerry.ist(setup.workers).partition.assign(plan.axes, 0)
    subnet = skerry.subnet.extract(model, plan, assignment.units(0))
    (batch,) = shards.batches(0, 0, 1)
    step = cost.step_cost(subnet, F.cross_entropy, batch, setup.optimizer)
    sizes = named_tensors(model)
    memory = cost.rank_memory(plan, sizes, assignment, 0, step, buffer_bytes=setup.buffers)
    return memory, sum(tensor.nbytes for tensor in sizes.values())


def exported_score(setup: Setup, folder: Path) -> skerry.training.Score:
    """Load the exported model, here without a memory limit, and score it."""
    with torch.device("meta"):
        model = setup.model()
    skerry.weights.materialize(model, skerry.weights.FromFiles(folder, model))
    return skerry.training.evaluate(model, F.cross_entropy, setup.data()[1])


# --- the report -------------------------------------------------------------------------------------------------------


def ours(runs: Mapping[str, Run], memory: cost.RankMemory, weights: int, setup: Setup, base: int) -> list[str]:
    """Return the table of Skerry's stages."""
    share, most = weights / setup.workers, memory.step.memory
    predicted = {
        "local steps": memory.training,
        "exchange": memory.exchange,
        "evaluation": memory.evaluation,
        "checkpoint": memory.exchange,
        "export": memory.evaluation,
    }
    rows = [
        "| start | stage | times | peak above the footprint, MiB | predicted | bound | s | sent, MB per worker |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, run in runs.items():
        for stage in dict.fromkeys(stage for record in run.records for stage in record["stages"]):
            peak = (run.most(stage, "peak") - base) / MIB
            guess = f"{predicted[stage] / MIB:.0f}" if stage in predicted else "-"
            bound = f"{(most + share + 64 * MIB) / MIB:.0f}"
            times, seconds, sent = (run.most(stage, what) for what in ("times", "seconds", "sent"))
            figures = (f"{times:.0f}", f"{peak:.0f}", guess, bound, f"{seconds:.1f}", f"{sent / 1e6:.1f}")
            rows.append(f"| {name} | {stage} | {' | '.join(figures)} |")
    return rows


def what_happened(run: Run) -> str:
    """Return what became of a start, in a few words."""
    if run.good:
        return "trains"
    lost = [k for k, killed in enumerate(run.killed) if killed]
    if not lost:
        return f"fails, exit codes {sorted(set(run.codes))}"
    stages = sorted({run.records[k]["now"] for k in lost})
    return f"{len(lost)} of {len(run.codes)} killed at the limit ({', '.join(stages)})"


def rivals(runs: Mapping[str, Run], setup: Setup, base: int) -> list[str]:
    """Return the table of all methods."""
    rows = [
        "| method | outcome | peak above the footprint, MiB | s per step | sent per step, MB per worker |",
        "|---|---|---:|---:|---:|",
    ]
    for name, run in runs.items():
        steps = setup.local_steps if "local steps" in run.records[0]["stages"] else 1
        parts = ["local steps", "exchange"] if steps > 1 else ["steps"]
        times = run.most(parts[0], "times") * (setup.stop if steps == 1 else steps)
        seconds, sent = (sum(run.most(part, what) for part in parts) / times for what in ("seconds", "sent"))
        peak = max((run.most(stage, "peak") for record in run.records for stage in record["stages"]), default=math.nan)
        figures = (f"{(peak - base) / MIB:.0f}", f"{seconds:.2f}", f"{sent / 1e6:.1f}")
        cells = ["-" if "nan" in figure else figure for figure in figures]
        rows.append(f"| {name} | {what_happened(run)} | {' | '.join(cells)} |")
    return rows


def report(
    runs: Mapping[str, Run],
    setup: Setup,
    found: Mapping[str, Mapping[str, int]],
    memory: cost.RankMemory,
    weights: int,
    score: skerry.training.Score | None,
) -> list[str]:
    """Return the lines that are printed at the end."""
    step, bare = found["step"], found["import"]
    room = step["cgroup"] + setup.limit - bare["cgroup"]
    lines = [
        f"{setup.workers} workers; weights {weights / MIB:.0f} MiB, in {2 * setup.blocks} matrices of {setup.width} x "
        f"{setup.width} and a few small tensors; buffers of at most {setup.buffers / MIB:.0f} MiB.",
        f"M = {setup.limit / MIB:.0f} MiB above a footprint of {step['cgroup'] / MIB:.0f} MiB: weights / M = "
        f"{weights / setup.limit:.2f}. (Above the {bare['cgroup'] / MIB:.0f} MiB of importing torch alone it is "
        f"{room / MIB:.0f} MiB, and weights / that = {weights / room:.2f}.)",
        "",
    ]
    starts = {name: runs[name] for name in ("first", "resumed") if name in runs}
    lines += ours(starts, memory, weights, setup, step["RssAnon"])
    over = {name: round((max(run.peaks) - step["cgroup"]) / MIB) for name, run in runs.items()}
    first = [run.records[0] for run in starts.values()]
    losses = [round(loss, 3) for t in first for loss in t.get("train_loss", [])]
    scores = [f"{s['loss']:.3f} ({s['accuracy']:.3f})" for t in first for s in t.get("score", [])]
    ended, began = (
        [t.get(key) for t in run.records] for run, key in zip(starts.values(), ("ended", "began"), strict=True)
    )
    lines += [
        "",
        f"Killed at the limit: {[sum(run.killed) for run in starts.values()]}. Peak of a cgroup above the footprint, "
        f"cached files included, MiB: {over}.",
        f"Training loss by round: {losses}. Test loss (accuracy) after rounds {setup.stop} and {setup.rounds}: "
        f"{scores}; of the exported model: {score}. The second start began with the bits of the first: "
        f"{ended == began and None not in ended}.",
        "",
    ]
    others = {name: run for name, run in runs.items() if name not in starts}
    return lines + rivals({"skerry": starts["first"], **others}, setup, step["RssAnon"])


def main() -> None:
    """Run everything and print the tables."""
    options = arguments()
    setup = Setup(**json.loads(options.setup))
    if options.role:
        work(options.role, setup, options.out)
        return
    if (reason := why_not(memory=True)) is not None:
        print(f"skipped: hosts with memory limits can't be made here: {reason}")
        return
    setup = setup_of(options)
    began, out = time.monotonic(), options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    found = footprint()
    limit = found["step"]["cgroup"] + setup.limit
    memory, weights = prediction(setup)
    print(f"footprint: {found}; weights {weights / MIB:.0f} MiB; {memory}", flush=True)

    runs: dict[str, Run] = {}
    plans: dict[str, tuple[str, int | None]] = {
        "first": ("first", limit), "resumed": ("second", limit), "narrow": ("narrow", limit), "DDP": ("ddp", limit),
        "FSDP": ("fsdp", limit), "FSDP, no limit": ("fsdp", None),
    }  # fmt: skip
    score = None
    chosen = list(plans.items())[2 if options.rivals else 0 : 2 if options.ours else None]
    for name, (role, room) in chosen:
        runs[name] = start(__file__, role, setup, setup.workers, room, out)
        print(f"{name}: {what_happened(runs[name])}, {runs[name].seconds:.0f} s", flush=True)
        if name == "resumed" and runs[name].good:
            score = exported_score(setup, out / "export")
    if options.rivals:
        print("\n".join(rivals(runs, setup, found["step"]["RssAnon"])), f"\n{time.monotonic() - began:.0f} s", sep="\n")
        return
    lines = report(runs, setup, found, memory, weights, score)
    print("\n".join(lines), f"\n{time.monotonic() - began:.0f} s", sep="\n")
    shutil.rmtree(out / "run", ignore_errors=True)
    shutil.rmtree(out / "export", ignore_errors=True)


def setup_of(options: argparse.Namespace) -> Setup:
    """Return the sizes that the command line asks for."""
    quick = {"workers": 4, "limit": 128 * MIB, "times": 1.5, "width": 1024, "local_steps": 5}
    limit = None if options.limit is None else options.limit * MIB
    given = {"workers": options.workers, "width": options.width, "times": options.times, "limit": limit}
    chosen: dict[str, Any] = quick if options.quick else {}
    return Setup(**chosen | {key: value for key, value in given.items() if value is not None})


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--limit", type=int, help="M, MiB")
    parser.add_argument("--times", type=float, help="the weights are this many times M")
    parser.add_argument("--out", type=Path, default=Path("runs/small-memory"))
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--ours", action="store_true", help="without the other methods")
    some.add_argument("--rivals", action="store_true", help="only the other methods")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--setup", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
