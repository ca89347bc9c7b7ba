"""Time to accuracy on slow links: IST against DDP, post-local SGD and DiLoCo, each at its best settings.

    SKERRY_DATA=... python bench/distributed/slow_link.py tune --task speech   # learning rates, loopback interface
    SKERRY_DATA=... python bench/distributed/slow_link.py time --task speech   # best of each, slow links (as root)
    python bench/distributed/slow_link.py table --task speech                  # table and picture, from the curves

The number of steps that a method needs does not depend on the link. So its learning rate is chosen without one, by the
number of steps to the target accuracy, for each number of local steps. Then every method runs with its best rate on n
hosts whose links have the given rate each way (``hosts.py``). Time is the first process's, without evaluations. All
methods see the same batches. A method with several numbers of local steps is shown with each of them.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts import Hosts, why_not

FOLDER = Path(__file__).parent
NUM_HOSTS = 4


@dataclass(frozen=True)
class Setting:
    """A method with its settings, the learning rates to try, and the number of steps it trains."""

    method: str
    local_steps: int
    rates: tuple[float, ...]
    steps: int
    reshuffle: float | None = None
    eval_every: int = 1  # rounds; ddp: steps
    overlap: int | None = None  # if given, even 0: Skerry's own local SGD instead of torch's

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return (
            f"{self.method}-{self.local_steps}"
            + (f"-r{self.reshuffle:g}" if self.reshuffle is not None else "")
            + (f"-o{self.overlap}" if self.overlap is not None else "")
        )

    def command(self, task: "Bench", rate: float, out: Path, seed: int) -> list[str]:
        """Return the script that trains it, with its arguments."""
        ours = self.method in ("ist", "narrow") or self.overlap is not None
        script = "train_skerry.py" if ours else "train_rival.py"
        options: dict[str, Any] = {
            "task": task.name, "method": self.method, "local-steps": self.local_steps, "lr": rate, "steps": self.steps,
            "hidden": task.hidden, "layers": task.layers, "out": out, "seed": seed,
        }  # fmt: skip
        if self.reshuffle is not None:
            options["reshuffle"] = self.reshuffle
        if self.overlap is not None:
            options["overlap"] = self.overlap
        options["eval-every"] = self.eval_every
        return [str(FOLDER / script), *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


@dataclass(frozen=True)
class Bench:
    """A task, the target accuracies, and the settings that are compared."""

    name: str
    hidden: int
    layers: int
    targets: tuple[float, ...]
    settings: tuple[Setting, ...]


SGD, ADAM = (0.01, 0.02, 0.05), (1e-4, 2e-4, 5e-4)
BENCHES = {
    "speech": Bench(
        "speech", 1024, 3, (0.60, 0.64, 0.66),
        (
            Setting("ddp", 1, (0.02, 0.05, 0.1), 60, eval_every=10),
            Setting("ist", 20, (0.05, 0.1, 0.2), 600, 1.0),
            Setting("ist", 20, (0.05, 0.1, 0.2), 600, 0.1),
            Setting("ist", 50, (0.05, 0.1, 0.2), 800, 1.0),
            Setting("ist", 100, (0.05, 0.1, 0.2), 800, 1.0),
            Setting("narrow", 50, (0.01, 0.02, 0.05), 400),
            Setting("narrow", 50, (0.05,), 400, overlap=25),
            Setting("local_sgd", 20, SGD, 120),
            Setting("local_sgd", 20, (0.02,), 120, overlap=0),
            Setting("local_sgd", 20, (0.02,), 120, overlap=10),
            Setting("local_sgd", 20, (0.02,), 120, overlap=20),
            Setting("local_sgd", 100, SGD, 300),
            Setting("local_sgd", 250, SGD, 500),
            Setting("local_sgd", 500, (0.01,), 500),  # the best rate of 250
            Setting("diloco", 20, ADAM, 120),
            Setting("diloco", 100, ADAM, 300),
            Setting("diloco", 250, ADAM, 500),
            Setting("diloco", 500, (2e-4,), 500),
        ),
    ),
    "fashion": Bench(
        "fashion", 1024, 2, (0.87, 0.88, 0.89),
        (
            Setting("ddp", 1, (0.05, 0.1, 0.2), 400, eval_every=50),
            Setting("ist", 50, (0.1, 0.2, 0.4), 3000, 0.1, eval_every=4),
            Setting("ist", 100, (0.1, 0.2, 0.4), 3000, 0.1, eval_every=2),
            Setting("narrow", 100, (0.05, 0.1, 0.2), 2000, eval_every=2),
            Setting("local_sgd", 20, (0.02, 0.05, 0.1), 800, eval_every=5),
            Setting("local_sgd", 100, (0.02, 0.05, 0.1), 1000),
            Setting("local_sgd", 250, (0.02, 0.05, 0.1), 1000),
            Setting("local_sgd", 500, (0.02, 0.05, 0.1), 1000),
            Setting("diloco", 20, (5e-4, 1e-3, 2e-3), 800, eval_every=5),
            Setting("diloco", 100, (5e-4, 1e-3, 2e-3), 1000),
            Setting("diloco", 250, (5e-4, 1e-3, 2e-3), 1000),
            Setting("diloco", 500, (1e-3,), 1000),  # two outer steps reach no target at any rate
        ),
    ),
}  # fmt: skip


def curve(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a curve; empty if it does not exist yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reached(lines: list[dict[str, Any]], target: float, what: str) -> float | None:
    """Return ``what`` (such as "step") at the first evaluation at or above ``target``; None if there is none."""
    return next((line[what] for line in lines if line["accuracy"] >= target), None)


def tune(bench: Bench, folder: Path, seed: int) -> None:
    """Run every setting at every learning rate, without slow links."""
    for setting in bench.settings:
        for rate in setting.rates:
            out = folder / "tune" / f"{setting.name}-lr{rate:g}.jsonl"
            if curve(out):
                continue
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_HOSTS)]
            command = [sys.executable, *torchrun, *setting.command(bench, rate, out, seed)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
            best = max((line["accuracy"] for line in curve(out)), default=0)
            steps = [reached(curve(out), target, "step") for target in bench.targets]
            print(f"{out.stem}: best {best:.4f}, steps to {bench.targets}: {steps}", flush=True)
            if done.returncode:
                print(done.stderr[-2000:], flush=True)


def best_rate(bench: Bench, setting: Setting, folder: Path) -> float:
    """Return the rate that reaches the most targets, and the highest of these in the fewest steps."""

    def merit(rate: float) -> tuple[float, ...]:
        lines = curve(folder / "tune" / f"{setting.name}-lr{rate:g}.jsonl")
        steps = [reached(lines, target, "step") for target in bench.targets]
        most = sum(step is not None for step in steps)
        return (most, -(steps[most - 1] or 0) if most else 0, max((line["accuracy"] for line in lines), default=0))

    return max(setting.rates, key=merit)


def measure(bench: Bench, folder: Path, rate: str, seed: int, only: list[str]) -> None:
    """Run every setting at its best rate on hosts with slow links."""
    if (reason := why_not()) is not None:
        raise SystemExit(f"hosts can't be made here: {reason}")
    with Hosts(NUM_HOSTS, rate=rate) as hosts:
        for setting in bench.settings:
            out = folder / rate / f"{setting.name}.jsonl"
            if curve(out) or (only and setting.name not in only):
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            command = setting.command(bench, best_rate(bench, setting, folder), out.absolute(), seed)
            outcome = hosts.torchrun(command, out=folder / rate / "logs" / setting.name, timeout_s=3600)
            print(f"{setting.name}: {outcome.seconds:.0f} s, exit codes {outcome.codes}", flush=True)


def table(bench: Bench, folder: Path, rate: str) -> str:
    """Return the table, in Markdown."""
    ist = [s for s in bench.settings if s.method == "ist"]
    rows = [
        "| method | local steps | lr | best accuracy |"
        + "".join(f" s to {t:g} | MB to {t:g} |" for t in bench.targets),
        "|---|---:|---:|---:|" + "---:|---:|" * len(bench.targets),
    ]
    fastest = {
        t: min((x for s in ist if (x := reached(curve(folder / rate / f"{s.name}.jsonl"), t, "train_s"))), default=None)
        for t in bench.targets
    }
    for setting in bench.settings:
        lines = curve(folder / rate / f"{setting.name}.jsonl")
        if not lines:
            continue
        name = setting.method + (f", reshuffle {setting.reshuffle:g}" if setting.reshuffle is not None else "")
        name += f" (Skerry's), overlap {setting.overlap}" if setting.overlap is not None else ""
        lr = f"{best_rate(bench, setting, folder):g}"
        row = f"| {name} | {setting.local_steps} | {lr} | {max(line['accuracy'] for line in lines):.4f} |"
        for t in bench.targets:
            seconds, sent = reached(lines, t, "train_s"), reached(lines, t, "bytes_model")
            ratio = f" ({seconds / fastest[t]:.1f}x)" if seconds and fastest[t] else ""
            row += f" {seconds:.1f}{ratio} | {sent / 1e6:.1f} |" if seconds is not None else " - | - |"
        rows.append(row)
    return "\n".join(rows)


def picture(bench: Bench, folder: Path, rate: str, out: Path) -> None:
    """Draw accuracy against time and against bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    colors = {
        "ist": "#0b6e99", "ddp": "#888888", "local_sgd": "#d9730d", "diloco": "#6940a5", "narrow": "#0f7b6c",
    }  # fmt: skip
    styles = ["-", "--", ":", "-."]
    seen: dict[str, int] = {}
    for setting in bench.settings:
        lines = curve(folder / rate / f"{setting.name}.jsonl")
        if not lines:
            continue
        style = styles[seen.get(setting.method, 0) % len(styles)]
        seen[setting.method] = seen.get(setting.method, 0) + 1
        for axis, what in ((left, "train_s"), (right, "bytes_model")):
            scale = 1.0 if what == "train_s" else 1e6
            axis.plot(
                [line[what] / scale for line in lines], [line["accuracy"] for line in lines], style,
                color=colors[setting.method], label=setting.name, linewidth=1.6,
            )  # fmt: skip
    for axis, label in ((left, "seconds, without evaluations"), (right, "MB sent per worker")):
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    left.set_ylabel("test accuracy")
    left.set_ylim(bottom=bench.targets[0] - 0.1)
    right.legend(fontsize=7, loc="lower right")
    figure.suptitle(f"{bench.name}, {bench.layers} x {bench.hidden} hidden, {NUM_HOSTS} hosts, {rate} each way")
    figure.savefig(out, dpi=130)


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "time", "table"])
    parser.add_argument("--task", choices=BENCHES, default="speech")
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="time: only these settings, by name, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/slow-link"))
    options = parser.parse_args()
    bench, folder = BENCHES[options.task], options.out / options.task
    if options.stage == "tune":
        tune(bench, folder, options.seed)
        return
    if options.stage == "time":
        measure(bench, folder, options.rate, options.seed, [name for name in options.only.split(",") if name])
    print(table(bench, folder, options.rate))
    picture(bench, folder, options.rate, folder / f"{options.rate}.png")


if __name__ == "__main__":
    main()
