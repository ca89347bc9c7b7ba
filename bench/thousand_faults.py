"""A thousand faults in one elastic run: do the memory, open files and threads of who survives stay flat? (Linux)

    python bench/thousand_faults.py --faults 1000 --out flat.jsonl

Three processes train the net of ``faults.py``. The third one is killed, leaves by SIGTERM, or is stopped for longer
than its lease; then a new one comes, which counts as a fault, too. In one of ten turns it is the store instead that is
killed, and started again after a second. The first two processes live to the end. A row of them, every so many faults:
resident memory, open files, threads, and the round. The run then ends by itself.

Checked: the trainings of all units are rounds times units, less those that the record calls lost. From the first row to
the last one memory grows by less than 10%, and files and threads by less than 3 (of one group there are ten).
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from faults import LEASE_S, UNITS, Member, Run, _open_files, _store

from skerry.callbacks import Callback

NUM, EVERY = 3, 10
KINDS = ("kill", "leave", "stop")


class Enduring(Member):
    """Trains until the folder has a file ``end``, and tells what it uses."""

    def _hook(self) -> None:
        """Do nothing: faults come from outside."""

    def _callbacks(self) -> list[Callback]:
        end = Callback(on_round=self._on_round)
        end.together = True
        return [*super()._callbacks(), end]

    def _on_round(self, session: Any, record: Any) -> None:
        if record.round % EVERY == 0:
            self.tell("uses", round=record.round, mb=_resident(), files=_open_files(), threads=threading.active_count())
        if (self.folder.parent / "end").exists():
            session.stop()
            self.tell("stops", round=record.round)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _enduring(folder: Path, address: str, setup: dict[str, Any]) -> None:
    with suppress(KeyboardInterrupt):
        Enduring(folder, address, setup).run()
    os._exit(0)


class Endless(Run):
    """A run that ends when it is told."""

    works = (_enduring, _store)


def _latest(run: Run, k: int, what: str) -> dict[str, Any] | None:
    """Return the last event of a kind among the latest ones: the file grows long."""
    try:
        with (run.folder / f"{k}" / "events").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**14))
            lines = file.read().decode().split("\n")
    except FileNotFoundError:
        return None
    whole = [line for line in lines[:-1] if line.startswith("{")]  # the first one may be half
    return next((event for event in map(json.loads, reversed(whole)) if event["what"] == what), None)


def _trains(run: Run, k: int, after: float, timeout_s: float = 60.0) -> float:
    """Wait until process ``k`` has begun a round after a time; return when."""
    until = time.time() + timeout_s
    while time.time() < until:
        event = _latest(run, k, "round")
        if event is not None and event["t"] > after:
            return float(event["t"])
        time.sleep(0.02)
    raise TimeoutError(f"process {k} does not go on")


def endure(folder: Path, num_faults: int, seed: int, out: Path | None, every: int) -> dict[str, Any]:
    """Inflict the faults; return how many there were of each kind, and what is wrong."""
    rng, kinds, run = random.Random(seed), cycle(KINDS), Endless(folder, NUM, rounds=10**6, delays=[0.004] * 8)
    run.setup |= {"minimum": 2, "patience_s": 60.0, "checkpoint_s": 1}
    run.begin(NUM)
    rows, told = list[dict[str, Any]](), Counter[str]()
    victim = NUM - 1
    for k in range(NUM):
        _trains(run, k, 0.0)
    while told.total() < num_faults:
        since = time.time()
        if rng.random() < 1 / 10:
            run.restart_store()
            told["store"] += 1
        else:
            kind = next(kinds)
            _end(run, victim, kind)
            _trains(run, 0, since + 0.1)
            run.join()
            victim += 1
            _trains(run, victim, since)
            told.update([kind, "join"])
        _trains(run, 0, time.time())
        if told.total() // every > len(rows):
            rows.append({"faults": told.total(), "uses": [_latest(run, k, "uses") for k in range(2)]})
            print(json.dumps(rows[-1]), flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    (folder / "end").touch()
    problems = run.end(60.0)
    ends = {k: event for k in (0, 1, victim) if (event := _latest(run, k, "end"))}
    problems += [] if len(ends) == NUM else [f"{NUM - len(ends)} did not end"]
    changes = {json.dumps([e["round"], e["lost"]]) for e in run.events(0) if e["what"] == "change"}
    lost = sum(json.loads(change)[1] for change in changes)
    stopped = _latest(run, 0, "stops")
    due = (stopped["round"] + 1) * UNITS - lost if stopped else 0
    problems += [f"{k}: {e['trained']} unit-rounds, expected {due}" for k, e in ends.items() if e["trained"] != due]
    problems += [f"{k}: {what}" for k in range(2) for what in _growth([row["uses"][k] for row in rows])]
    return {
        "faults": told,
        "rounds": stopped and stopped["round"] + 1,
        "unit-rounds lost": lost,
        "problems": problems,
    }


def _growth(uses: list[dict[str, Any]]) -> list[str]:
    """Return what has grown between the first and the last row."""
    if len(uses) < 2:
        return []
    first, last = uses[0], uses[-1]
    grown = [f"{last[name] - first[name]} more {name}" for name in ("files", "threads") if last[name] > first[name] + 2]
    return grown + [f"{first['mb']:.0f} MB, then {last['mb']:.0f}"] * (last["mb"] > 1.1 * first["mb"])


def _end(run: Run, k: int, kind: str) -> None:
    """Kill a process, let it leave, or stop it until others have lost it, and kill it then."""
    pid = run.members[k].pid
    if kind == "stop":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5 * LEASE_S)
    os.kill(pid, signal.SIGTERM if kind == "leave" else signal.SIGKILL)
    run.members[k].join()


def main() -> None:
    """Run it; exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="faults between two rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file of JSON lines, to which rows are added")
    o = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left
    multiprocessing.get_context("forkserver").set_forkserver_preload(["skerry", "sklearn.datasets", "__main__"])
    with tempfile.TemporaryDirectory() as folder:
        told = endure(Path(folder), o.faults, o.seed, o.out, o.every)
    print(json.dumps(told))
    sys.exit(bool(told["problems"]))


if __name__ == "__main__":
    main()
