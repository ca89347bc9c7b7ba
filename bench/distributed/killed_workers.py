"""Kill or stop workers at random moments: the others report which one, end in time, and resuming loses nothing (Linux).

    python bench/distributed/killed_workers.py                       # 50 times, with torchrun and with launch in turn
    python bench/distributed/killed_workers.py --times 4 --seed 7    # fewer, at other moments

One run is made undisturbed. Then runs with the same settings are started. Some time later one of their workers gets
SIGKILL or SIGSTOP; the run is resumed, hit again and so on, until it is finished. Checked each time:

- all other workers end within the run's timeout, and so does the process that started them, with an exit code other
  than 0; no process is left;
- each survivor (with launch: the parent) reports in one line the lost rank, the round and the stage;
- no file is incomplete, except drafts and checkpoints that the next start does not read.

In the end the run's model, metrics and list of files must equal those of the undisturbed one, bit for bit. "Lost" is
the number of rounds in metrics.jsonl that the resumed run repeated: at most one, if the signal came between that line
and the round's checkpoint.

Under torchrun this script kills a stopped worker once the others have ended: torchrun would ask it to end and wait 30 s
for an answer. So torchrun's own end is not held to the timeout.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

ROUNDS, LOCAL_STEPS = 24, 20
HOWS = ("torchrun", "launch")
SPAN = 8  # a signal comes within this many rounds of a start
STARTER_S = 15.0  # extra time for torchrun to end after its last worker
LINE = re.compile(r"skerry: error: rank (\d+), round (\d+), ([^:]+): (.+)")
STAGES = ("local steps", "exchange", "evaluation", "checkpoint", "export")
KEPT = ("round", "rate_factor", "train_loss", "loss", "accuracy", "bytes_due", "units_covered", "refused")
MARK = "SKERRY_BENCH_KILLS"  # in the environment of all processes of a start, so that orphans are found too


@dataclass
class Kill:
    """The outcome of one signal: a row of the table."""

    run: int
    how: str
    signal: str
    rank: int
    round: int = -1  # as reported
    stage: str = "?"
    workers_s: float = 0.0  # from the signal until all other workers had ended
    starter_s: float = 0.0  # until the process that started them had
    resumed: int = -1  # after this many rounds
    lost: int = -1
    equal: bool = False
    problems: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return its line of the table."""
        return " ".join(_cell(f.name, getattr(self, f.name)) for f in fields(self))


def _cell(name: str, value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return "; ".join(value) or "-"
    return text.rjust(max(len(name), {"how": 8, "signal": 7, "stage": 11}.get(name, 5)))


class Start:
    """One start of a run by torchrun or by ``skerry train`` itself, and the processes that belong to it."""

    def __init__(self, how: str, folder: Path, options: argparse.Namespace, *, resume: bool = False) -> None:
        self.how, self.folder, self.num_workers = how, folder, options.workers
        settings = {"rounds": ROUNDS, "local_steps": LOCAL_STEPS, "threads": 1, "optimizer_state": "travel"}
        settings |= {"checkpoint_every_s": 0, "timeout_s": options.timeout_s}
        command = [sys.executable, "-m"]
        if how == "torchrun":
            command += ["torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(options.workers)]
            command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m"]
        command += ["skerry", "train", "digits-mlp", "--out", str(folder)]
        if how == "launch":
            command += ["--runtime", "processes", "--workers", str(options.workers)]
        command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        self._mark = uuid.uuid4().hex
        self._stderr = folder.with_name(f"{folder.name}-{self._mark}.stderr")
        environment = os.environ | {MARK: self._mark}
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command + ["--resume"] * resume, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
            )

    def stderr(self) -> str:
        """Return what its processes wrote to stderr so far."""
        return self._stderr.read_text(errors="replace")

    def rounds(self) -> int:
        """Return the number of rounds in metrics.jsonl."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def is_alive(self, pid: int) -> bool:
        """Return whether ``pid`` is a running process of this start, not a zombie."""
        try:
            return f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False

    def alive(self) -> list[int]:
        """Return all running processes of this start, whoever their parent is now."""
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self.is_alive(int(p.name))]

    def workers(self) -> list[int]:
        """Return the pids of its running workers, in order of ranks."""
        found = []
        for pid in self.alive():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
                is_ours = b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() if rank is None else True
                if int(stat[1]) == self.process.pid and is_ours:
                    found.append((int(rank[1]) if rank else 0, int(stat[19]), pid))  # 19: its start time
        return [pid for *_, pid in sorted(found)]

    def end(self) -> None:
        """Kill the processes that are left."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def until(condition: Callable[[], object], timeout_s: float, every_s: float = 0.01) -> bool:
    """Wait until ``condition`` holds; return whether it did within ``timeout_s``."""
    give_up = time.monotonic() + timeout_s
    while not (holds := bool(condition())) and time.monotonic() < give_up:
        time.sleep(every_s)
    return holds


def disturb(start: Start, kill: Kill, moment: float, round_s: float, timeout_s: float) -> bool:
    """Signal worker ``kill.rank`` at ``moment`` (in rounds) and note what happens; False if the run had finished."""
    until(lambda: start.process.poll() is not None or start.rounds() >= int(moment), 600)
    time.sleep(moment % 1 * round_s)
    workers = start.workers()
    if len(workers) < start.num_workers or (start.folder / "summary.json").exists():
        return False
    victim = workers.pop(kill.rank)
    os.kill(victim, signal.Signals[kill.signal])
    since = time.monotonic()
    until(lambda: not any(map(start.is_alive, workers)), timeout_s + 60)
    kill.workers_s = time.monotonic() - since
    if start.how == "torchrun":
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    until(lambda: start.process.poll() is not None, 60)
    kill.starter_s = time.monotonic() - since
    if start.process.returncode == 0 and (start.folder / "summary.json").exists():
        return False
    kill.problems += ended(start, kill, timeout_s) + reported(start, kill) + incomplete_files(start.folder)
    start.end()
    return True


def ended(start: Start, kill: Kill, timeout_s: float) -> list[str]:
    """Return what is wrong with how the processes ended."""
    problems = []
    starter = timeout_s if start.how == "launch" else timeout_s + STARTER_S
    for who, took_s, most_s in (("workers", kill.workers_s, timeout_s), ("starter", kill.starter_s, starter)):
        if took_s > most_s:
            problems.append(f"{who} ended after {took_s:.1f} s, expected {most_s:g}")
    if not until(lambda: not start.alive(), 2):
        problems.append(f"{len(start.alive())} process(es) left")
    if start.process.returncode == 0:
        problems.append("exit code 0")
    return problems


def reported(start: Start, kill: Kill) -> list[str]:
    """Note the reported round and stage; return what is wrong with the reports."""
    lines = [line for line in start.stderr().splitlines() if "skerry: error:" in line]
    expected, done = (1 if start.how == "launch" else start.num_workers - 1), start.rounds()
    problems = [] if len(lines) == expected else [f"{len(lines)} lines of error, expected {expected}"]
    for line in lines:
        if not (found := LINE.search(line)):
            problems.append(f"no rank, round and stage in: {line.strip()}")
            continue
        rank, kill.round, kill.stage = int(found[1]), int(found[2]), found[3]
        gone = re.search(r"rank (\d+) is gone", found[4])
        if int(gone[1] if gone else rank) != kill.rank:
            problems.append(f"names another rank than {kill.rank}: {line.strip()}")
        if kill.round not in (done - 1, done) or kill.stage not in STAGES:
            problems.append(f"{done} rounds were done, but: {line.strip()}")
    if start.how == "launch" and "Traceback" in start.stderr():  # torchrun prints its own
        problems.append("a traceback")
    return problems


def incomplete_files(folder: Path) -> list[str]:
    """Return the files that a reader of a run that was just killed could not read."""
    problems = []
    for path in folder.glob("*.json"):  # the names of drafts begin with a dot
        try:
            json.loads(path.read_text())
        except ValueError:
            problems.append(f"{path.name} is incomplete")
    return problems


def differences(folder: Path, reference: Path) -> list[str]:
    """Return how a finished run differs from the undisturbed one."""
    names = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (folder, reference)]
    problems = [f"{name}: only in one of the runs" for name in sorted(names[0] ^ names[1])]
    name = "model.safetensors"
    if name in names[0] and (folder / name).read_bytes() != (reference / name).read_bytes():
        problems.append(f"{name} differs")
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (folder, reference)]
    if [line["round"] for line in lines[0]] != list(range(ROUNDS)):
        problems.append("metrics.jsonl does not have each round once")
    elif [{k: line[k] for k in KEPT} for line in lines[0]] != [{k: line[k] for k in KEPT} for line in lines[1]]:
        problems.append("figures in metrics.jsonl differ")
    return problems


def trial(number: int, how: str, signals: list[str], reference: Path, options: argparse.Namespace) -> list[Kill]:
    """Start a run, disturb it, resume it and so on, until it is finished."""
    dice, folder = random.Random(f"{options.seed} {number}"), reference.with_name(f"run-{number}")
    stamps = [json.loads(line)["time_s"] for line in (reference / "metrics.jsonl").read_text().splitlines()]
    round_s = (stamps[-1] - stamps[0]) / (ROUNDS - 1)
    start, base, kills = Start(how, folder, options), 0, list[Kill]()
    while signals and (moment := dice.uniform(base + 1, base + 1 + SPAN)) < ROUNDS + 1:
        kill = Kill(number, how, signals[-1], dice.randrange(options.workers))
        if not disturb(start, kill, moment, round_s, options.timeout_s):
            break
        signals.pop()
        kills.append(kill)
        rounds, start = start.rounds(), Start(how, folder, options, resume=True)
        base = kill.resumed = resumed_after(start)
        kill.lost = rounds - base
        if not 0 <= kill.lost <= 1:
            kill.problems.append(f"{rounds} rounds were done, it resumed after {base}")
    until(lambda: start.process.poll() is not None, 600, 0.1)
    wrong = [] if start.process.returncode == 0 else [f"ended with {start.process.returncode}: {start.stderr()[-300:]}"]
    start.end()
    wrong = wrong or differences(folder, reference)
    if wrong and not kills:
        raise SystemExit(f"run {number}, undisturbed: {'; '.join(wrong)}")
    for kill in kills:
        kill.equal = not wrong
        kill.problems += wrong
    return kills


def resumed_after(start: Start) -> int:
    """Wait until a resumed run reports after how many rounds it resumes, and return that; -1 if it does not."""
    until(lambda: "resuming after round" in start.stderr() or start.process.poll() is not None, 600)
    found = re.search(r"resuming after round (\d+) of", start.stderr())
    return int(found[1]) if found else -1


def main() -> int:
    """Run all trials; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="the number of signals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=10.0, help="of the runs; workers must end within it")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--how", choices=[*HOWS, "both"], default="both")
    parser.add_argument("--out", type=Path, default=Path("runs/kills.json"))
    options = parser.parse_args()
    began, hows = time.monotonic(), HOWS if options.how == "both" else (options.how,)
    signals: dict[str, list[str]] = {how: [] for how in hows}
    for k in range(options.times):
        signals[hows[k % len(hows)]].append(("SIGKILL", "SIGSTOP")[k // len(hows) % 2])
    for left in signals.values():
        random.Random(options.seed).shuffle(left)
    work, number, kills = Path(tempfile.mkdtemp(prefix="skerry-kills-")), 0, list[Kill]()
    reference = Start(hows[0], work / "reference", options)
    if reference.process.wait():
        raise SystemExit(f"the undisturbed run failed: {reference.stderr()}")
    print(" ".join(_cell(f.name, f.name) for f in fields(Kill)))
    while any(signals.values()):
        how = hows[number % len(hows)]
        made = trial(number, how, signals[how], reference.folder, options) if signals[how] else []
        kills, number = kills + made, number + 1
        for kill in made:
            print(kill.row(), flush=True)
    bad = [kill for kill in kills if kill.problems]
    summary = {
        "kills": len(kills), "failed": len(bad), "rounds_lost": sum(k.lost for k in kills),
        "slowest_workers_s": max(k.workers_s for k in kills), "slowest_starter_s": max(k.starter_s for k in kills),
        "took_s": time.monotonic() - began,
    }  # fmt: skip
    print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))
    config = {name: value for name, value in vars(options).items() if name != "out"}
    config |= {"skerry": version("skerry"), "torch": version("torch"), "rounds": ROUNDS, "local_steps": LOCAL_STEPS}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"config": config, "summary": summary, "kills": [asdict(kill) for kill in kills]}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if bad:
        print(f"the runs are kept in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
