"""Kill or stop workers at random moments: all others say who and end in time, and the resumed run loses nothing (Linux).

    python bench/kills.py                       # 50 times, under torchrun and with processes of our own in turn
    python bench/kills.py --times 4 --seed 7    # less, elsewhere

One run is made undisturbed. Then runs with the same settings are started; at a random moment after the first round, one
of their workers gets SIGKILL or SIGSTOP. Checked each time, within the run's timeout:

- all other workers end, and so does who started them, with an exit code that is not zero; no process is left,
- each survivor (with processes of our own: the parent) tells in one line the lost rank, the round and the stage,
- beside checkpoints and drafts, which the next start removes, no file is there that should not be, none is half.

The run is resumed, every third time killed again, and in the end its model, metrics and list of files are those of the
undisturbed run, to the bit. "Lost" counts rounds that metrics.jsonl had and the resumed run did again: a kill between
that line and the round's checkpoint costs one, at most. A stopped worker under torchrun is killed by this script once
the others have ended: torchrun asks it to end and waits 30 s for an answer. So its own end is not held to the timeout.
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
AGAIN = 1 / 3
STARTER_S = 15.0  # for torchrun's own goodbye after its last worker's
LINE = re.compile(r"skerry: error: rank (\d+), round (\d+), ([^:]+): (.+)")
STAGES = ("local steps", "exchange", "evaluation", "checkpoint", "export")
KEPT = ("round", "rate_factor", "train_loss", "loss", "accuracy", "bytes_due", "units_covered", "refused")
MARK = "SKERRY_BENCH_KILLS"  # in the environment of all processes of a start: finds those that were left alone, too


@dataclass
class Kill:
    """What came of one signal: a row of the table."""

    run: int
    how: str
    signal: str
    rank: int
    round: int = -1  # as told
    stage: str = "?"
    workers_s: float = -1.0  # until all other workers had ended
    starter_s: float = -1.0
    resumed: int = -1  # after so many rounds
    lost: int = -1
    equal: bool = False
    again: bool = False  # whether it hit a resumed run
    problems: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Its line of the table."""
        return " ".join(_cell(f.name, getattr(self, f.name)) for f in fields(self))


def _cell(name: str, value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return "; ".join(value) or "-"
    return text.rjust(max(len(name), {"how": 8, "signal": 7, "stage": 11}.get(name, 5)))


class Start:
    """One start of a run in ``folder`` by torchrun or by ``skerry train`` itself, and the processes that belong to it."""

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
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._stderr = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:6]}.stderr")
        environment = dict([*os.environ.items(), tuple(self._mark.split("="))], OMP_NUM_THREADS="1")
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command + ["--resume"] * resume, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
            )

    def said(self) -> str:
        """What its processes wrote to stderr so far."""
        return self._stderr.read_text(errors="replace")

    def rounds(self) -> int:
        """How many rounds have their line in metrics.jsonl."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def resumed(self) -> int | None:
        """After how many rounds it went on, once that is known."""
        found = re.search(r"resuming after round (\d+) of", self.said())
        return int(found[1]) if found else None

    def is_alive(self, pid: int) -> bool:
        """Whether ``pid`` is a process of this start, and no zombie."""
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False

    def alive(self) -> list[int]:
        """All processes of this start, whoever is their parent now."""
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self.is_alive(int(p.name))]

    def workers(self) -> list[int]:
        """The pids of its workers that are alive, in order of ranks."""
        found = []
        for pid in self.alive():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
                is_ours = b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() if rank is None else True
                if int(stat[1]) == self.process.pid and is_ours:
                    found.append((int(rank[1]) if rank else 0, int(stat[19]), pid))  # 19: when it was started
        return [pid for *_, pid in sorted(found)]

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def until(condition: Callable[[], object], timeout_s: float, every_s: float = 0.01) -> bool:
    """Wait until ``condition`` holds; return whether it did in time."""
    give_up = time.monotonic() + timeout_s
    while not (holds := bool(condition())) and time.monotonic() < give_up:
        time.sleep(every_s)
    return holds


def disturb(start: Start, kill: Kill, moment: float, round_s: float, timeout_s: float) -> bool:
    """Signal the worker ``kill.rank`` at ``moment`` (in rounds) and watch what happens; False: it came too late."""
    until(lambda: start.process.poll() is not None or start.rounds() >= int(moment), 600)
    time.sleep(moment % 1 * round_s)
    workers = start.workers()
    if len(workers) < start.num_workers or (start.folder / "summary.json").exists():
        return False
    victim = workers.pop(kill.rank)
    os.kill(victim, signal.Signals[kill.signal])
    since, helped = time.monotonic(), False
    while time.monotonic() - since < timeout_s + 60:
        if kill.workers_s < 0 and not any(map(start.is_alive, workers)):
            kill.workers_s = time.monotonic() - since
        if kill.workers_s >= 0 and start.how == "torchrun" and not helped:
            helped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if start.process.poll() is not None:
            kill.starter_s = time.monotonic() - since
            until(lambda: not any(map(start.is_alive, workers)), 0.2)
            break
        time.sleep(0.02)
    if kill.workers_s < 0 and not any(map(start.is_alive, workers)):
        kill.workers_s = time.monotonic() - since
    kill.problems += ended(start, kill, timeout_s) + told(start, kill) + half_files(start.folder)
    start.end()
    return True


def ended(start: Start, kill: Kill, timeout_s: float) -> list[str]:
    """What is wrong with how the processes ended."""
    problems = []
    if not 0 <= kill.workers_s <= timeout_s:
        problems.append(f"workers ended after {kill.workers_s:.1f} s, expected {timeout_s:g}" if kill.workers_s > 0 else
                        "workers did not end")  # fmt: skip
    most = timeout_s if start.how == "launch" else timeout_s + STARTER_S
    if not 0 <= kill.starter_s <= most:
        problems.append(f"starter ended after {kill.starter_s:.1f} s, expected {most:g}" if kill.starter_s > 0 else
                        "starter hung")  # fmt: skip
    elif not until(lambda: not start.alive(), 2):
        problems.append(f"{len(start.alive())} process(es) left")
    if start.process.returncode == 0:
        problems.append("exit code 0")
    return problems


def told(start: Start, kill: Kill) -> list[str]:
    """Note round and stage as told; return what is wrong with the lines."""
    said = [line for line in start.said().splitlines() if "skerry: error:" in line]
    expected, done = (1 if start.how == "launch" else start.num_workers - 1), start.rounds()
    problems = [] if len(said) == expected else [f"{len(said)} lines of error, expected {expected}"]
    for line in said:
        if not (found := LINE.search(line)):
            problems.append(f"no rank, round and stage in: {line.strip()}")
            continue
        rank, kill.round, kill.stage = int(found[1]), int(found[2]), found[3]
        gone = re.search(r"rank (\d+) is gone", found[4])
        if int(gone[1] if gone else rank) != kill.rank:
            problems.append(f"names another rank than {kill.rank}: {line.strip()}")
        if kill.round not in (done - 1, done) or kill.stage not in STAGES:
            problems.append(f"{done} rounds were done, but: {line.strip()}")
    if "Traceback" in "".join(said) or (start.how == "launch" and "Traceback" in start.said()):
        problems.append("a traceback")
    return problems


def half_files(folder: Path) -> list[str]:
    """What a reader of a run that has just been killed would stumble over."""
    problems = []
    for path in folder.glob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            problems.append(f"{path.name} is half")
    return problems


def differences(folder: Path, reference: Path) -> list[str]:
    """How a finished run differs from the undisturbed one."""
    names = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (folder, reference)]
    problems = [f"{name}: in one run only" for name in sorted(names[0] ^ names[1])]
    if "model.safetensors" in names[0] and not _same(folder, reference, "model.safetensors"):
        problems.append("another model.safetensors")
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (folder, reference)]
    if [line["round"] for line in lines[0]] != list(range(ROUNDS)):
        problems.append("metrics.jsonl has not each round once")
    elif [{k: line[k] for k in KEPT} for line in lines[0]] != [{k: line[k] for k in KEPT} for line in lines[1]]:
        problems.append("other figures in metrics.jsonl")
    return problems


def _same(a: Path, b: Path, name: str) -> bool:
    return (a / name).read_bytes() == (b / name).read_bytes()


def trial(number: int, how: str, signals: list[str], reference: Path, options: argparse.Namespace) -> list[Kill]:
    """Start a run, kill it once or more and resume it until it is done."""
    dice, folder, kills = random.Random(f"{options.seed} {number}"), reference.with_name(f"run-{number}"), []
    stamps = [json.loads(line)["time_s"] for line in (reference / "metrics.jsonl").read_text().splitlines()]
    start, base = Start(how, folder, options), 0
    while signals and base + 1 < ROUNDS and (not kills or dice.random() < AGAIN):
        kill = Kill(number, how, signals[-1], dice.randrange(options.workers), again=bool(kills))
        moment = dice.uniform(base + 1, ROUNDS + 1)
        if not disturb(start, kill, moment, (stamps[-1] - stamps[0]) / (ROUNDS - 1), options.timeout_s):
            break
        signals.pop()
        kills.append(kill)
        rounds, start = start.rounds(), Start(how, folder, options, resume=True)
        until(lambda s=start: s.resumed() is not None or s.process.poll() is not None, 600)
        base = kill.resumed = start.resumed() or 0
        kill.lost = rounds - base
        if not 0 <= kill.lost <= 1:
            kill.problems.append(f"{rounds} rounds were done, it went on after {base}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        start.process.wait(600)
    wrong = [] if start.process.returncode == 0 else [f"ended with {start.process.returncode}: {start.said()[-300:]}"]
    start.end()
    wrong = wrong or differences(folder, reference)
    for kill in kills:
        kill.equal = not wrong
        kill.problems += wrong
    if not any(kill.problems for kill in kills):
        shutil.rmtree(folder)
    return kills


def main() -> int:
    """Run all trials; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="signals in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=10.0, help="of the runs, and what is expected")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--how", choices=[*HOWS, "both"], default="both")
    parser.add_argument("--out", type=Path, default=Path("runs/kills.json"))
    options = parser.parse_args()
    began, hows = time.monotonic(), HOWS if options.how == "both" else (options.how,)
    signals = ["SIGKILL", "SIGSTOP"] * ((options.times + 1) // 2)
    random.Random(options.seed).shuffle(signals)
    signals = signals[: options.times]
    work, kills, number = Path(tempfile.mkdtemp(prefix="skerry-kills-")), list[Kill](), 0
    reference = Start(hows[0], work / "reference", options)
    if reference.process.wait():
        raise SystemExit(f"the undisturbed run failed: {reference.said()}")
    print(" ".join(_cell(f.name, f.name) for f in fields(Kill)))
    while signals:
        made = trial(number, hows[number % len(hows)], signals, reference.folder, options)
        print("\n".join(kill.row() for kill in made) or f"    {number} was done before its signal came", flush=True)
        kills, number = kills + made, number + 1
    bad = [kill for kill in kills if kill.problems]
    summary = {
        "kills": len(kills), "failed": len(bad), "rounds_lost": sum(k.lost for k in kills),
        "slowest_workers_s": max(k.workers_s for k in kills), "slowest_starter_s": max(k.starter_s for k in kills),
        "took_s": time.monotonic() - began,
    }  # fmt: skip
    print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))
    told = {name: value for name, value in vars(options).items() if name != "out"}
    told |= {"skerry": version("skerry"), "torch": version("torch"), "rounds": ROUNDS, "local_steps": LOCAL_STEPS}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"config": told, "summary": summary, "kills": [asdict(kill) for kill in kills]}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if bad:
        print(f"runs that failed are kept in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
