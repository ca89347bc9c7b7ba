"""Faults of sites and of the network, at random times: nothing spoilt is accepted, and nothing else is lost."""

import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serial
import spoilt
import stranger
from processes import (
    RECIPE,
    Server,
    Watched,
    arguments,
    context,
    joined,
    make_certificates,
    of_model,
    open_files,
    status_of,
)
from road import Road

HELP = """A server with keys, and sites in processes of their own, each behind a road that can be cut. What comes when
is a function of the seed: so many rounds are done, and so many seconds later. A site that is killed is started again at
once. Checked: the run ends; the record calls refused each update that was spoilt, and nobody without a key is let in;
units' rounds that were lost are those of the record; the weights are finite, and those of a serial run in which exactly
these updates are refused, to the bit; the server's memory and open files do not grow."""
WAYS: dict[str, tuple[str, ...]] = {
    "kill": ("",),
    "stop": ("",),
    "cut": ("",),
    "wrong key": ("",),
    "replay": (*(w for w in (*spoilt.CONTENTS, *spoilt.UPLOADS) if w.startswith("replay")), "replay: encrypted bytes"),
    "corrupt": (*(w for w in (*spoilt.CONTENTS, *spoilt.UPLOADS) if w.startswith("corrupt")), "corrupt: on the road"),
    "oversized": (*(w for w in (*spoilt.CONTENTS, *spoilt.UPLOADS) if w.startswith("oversized")), "oversized: no key"),
    "NaN": tuple(w for w in spoilt.CONTENTS if w.startswith("NaN")),
}
_GAP, _BEFORE, _TAIL = 3, 5, 150  # rounds between two faults, before the first and after the last
_END_S = 900.0


@dataclass(frozen=True)
class Fault:
    """What happens to a site, or comes from outside: ``delay_s`` after ``round`` rounds are done, for ``length_s``."""

    kind: str
    way: str
    site: int
    round: int
    delay_s: float
    length_s: float


def planned(num: int, seed: int, sites: int, kinds: list[str]) -> list[Fault]:
    """Return the faults of a seed, each kind as often, in random order."""
    rng = random.Random(seed)
    order = [kinds[i % len(kinds)] for i in range(num)]
    rng.shuffle(order)
    return [
        Fault(
            kind,
            rng.choice(WAYS[kind]),
            rng.randrange(sites),
            _BEFORE + _GAP * i,
            rng.random(),
            0.5 + 5.5 * rng.random(),
        )
        for i, kind in enumerate(order)
    ]


class Run:
    """The server, the sites, and what happens to them."""

    def __init__(self, folder: Path, settings: serial.Settings, sites: int, deadline_s: float) -> None:
        self.folder, self.settings = folder, settings
        make_certificates(folder, sites)
        limits = ["--deadline", str(deadline_s), "--at-least", str(sites - 1), "--certs", str(folder / "certs")]
        self.server = Server(folder, *arguments(settings), *limits)
        self.roads = [Road(self.server.port) for _ in range(sites)]
        self.sites: list[Any] = [None] * sites
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.let: list[str] = []  # what somebody without a key was let do
        self.happened: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []  # memory and open files of the server
        self._watched, self._measured = Watched(self.server.folder / "metrics.jsonl"), 0.0
        for k in range(sites):
            self.start(k)

    def start(self, k: int) -> None:
        """Start a site."""
        secrets = ["--certs", str(self.folder / "certs" / "ca.crt"), "--key", str(self.folder / f"site-{k}.key")]
        join = [f"127.0.0.1:{self.roads[k].port}", RECIPE, "--site", str(k), *of_model(self.settings), *secrets]
        args = (self.folder / f"site-{k}.txt", join, spoilt.install, self.folder, k)
        self.sites[k] = context().Process(target=joined, args=args, daemon=True)
        self.sites[k].start()

    def look(self) -> int:
        """Undo what is over, measure, and return the number of rounds done."""
        now, pid = time.monotonic(), self.server.process.pid
        for each in [each for each in self.later if each[0] <= now]:
            self.later.remove(each)
            each[1]()
        if now - self._measured > 2.0:
            self._measured = now
            self.sizes.append((status_of(pid, "VmRSS"), open_files(pid)))
        return self._watched.look()

    def wait(self, until: Callable[[], bool], timeout_s: float = _END_S) -> bool:
        """Wait; return whether it came while the server ran."""
        end = time.monotonic() + timeout_s
        while not until():
            if self.server.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def inflict(self, fault: Fault) -> None:
        """Let a fault happen."""
        k, site, road = fault.site, self.sites[fault.site], self.roads[fault.site]
        undo: Callable[[], None] | None = None
        if fault.kind == "kill":
            site.kill()
            site.join()
            self.start(k)
        elif fault.kind == "stop":
            os.kill(site.pid, signal.SIGSTOP)
            undo = lambda: None if site.exitcode is not None else os.kill(site.pid, signal.SIGCONT)  # noqa: E731
        elif fault.kind == "cut":
            road.cut()
            undo = road.mend
        elif fault.kind == "wrong key":
            self.let += stranger.with_another_key(self.server.port, self.folder, self.folder / f"request-{k}")
        elif fault.way == "replay: encrypted bytes":
            self.let += stranger.with_the_same_bytes(self.server.port, bytes(road.recorded))
        elif fault.way == "corrupt: on the road":
            road.spoil()
        elif fault.way == "oversized: no key":
            self.let += stranger.with_too_much(self.server.port, self.folder)
        else:
            with (self.folder / f"orders-{k}").open("a") as file:
                file.write(fault.way + "\n")
        if undo is not None:
            self.later.append((time.monotonic() + fault.length_s, undo))
        self.happened[fault.kind] += 1

    def told(self) -> list[dict[str, Any]]:
        """Return what sites have spoilt: ``site``, ``round`` and ``what``."""
        found = []
        for k in range(len(self.sites)):
            path = self.folder / f"told-{k}"
            found += [{"site": k, **json.loads(t)} for t in (path.read_text().splitlines() if path.exists() else [])]
        return found

    def end(self) -> list[str]:
        """Wait for the end of the run; return what is wrong."""
        self.wait(lambda: self.look() < 0)  # the server ends first
        problems = [] if self.server.process.poll() == 0 else ["the run did not end well: " + self.server.said[-1000:]]
        for k, site in enumerate(self.sites):
            site.join(60.0)
            problems += [] if site.exitcode == 0 else [f"site {k} did not end well"]
        return problems

    def close(self) -> None:
        """End all processes."""
        self.server.kill()
        for site in self.sites:
            site.kill()
        for road in self.roads:
            road.close()


def main(folder: Path, num: int, seed: int, sites: int, method: str, deadline_s: float, kinds: list[str]) -> list[str]:
    """Run it, print a row for each kind; return what is wrong."""
    faults = planned(num, seed, sites, kinds)
    rounds = faults[-1].round + _TAIL
    settings = {"method": method, "workers": sites, "rounds": rounds, "model.hidden": 32 * sites, "seed": seed}
    run, began = Run(folder, settings, sites, deadline_s), time.monotonic()
    try:
        for fault in faults:
            if run.wait(lambda fault=fault: run.look() >= fault.round):
                at = time.monotonic() + fault.delay_s
                run.wait(lambda at=at: run.look() < 0 or time.monotonic() >= at)
                run.inflict(fault)
        problems = run.end()
    finally:
        run.close()
    lines = run.server.rounds()
    refused = {(line["round"], worker) for line in lines for worker in line["refused"]}
    (folder / "refused.json").write_text(json.dumps(sorted(refused)))
    problems += judged(run, faults, refused, rounds, len(lines))
    if not problems:
        problems += serial.problems_of(run.server.folder, settings, refused)
        problems += _of_units(run.server.folder, settings, refused)
    _print(run, faults, refused, lines, time.monotonic() - began)
    print("wrong: " + "; ".join(problems) if problems else "equal to the serial run that refuses the same, to the bit")
    return problems


def judged(run: Any, faults: list[Fault], refused: set[tuple[int, int]], rounds: int, done: int) -> list[str]:
    """Return what is wrong with the record of a run, and with the server's memory and files."""
    problems = [] if done == rounds else [f"{done} of {rounds} rounds"]
    missing = Counter(fault.kind for fault in faults) - run.happened
    problems += [f"{n} of {kind} did not happen" for kind, n in missing.items()]
    ordered = Counter(fault.way for fault in faults if fault.way in (*spoilt.CONTENTS, *spoilt.UPLOADS))
    left = ordered - Counter(each["what"] for each in run.told())
    problems += [f"not sent, {n} times: {way}" for way, n in left.items()]
    problems += [f"let in: {what}" for what in run.let]
    for each in run.told():
        if each["what"] != spoilt.UPLOADS[2] and (each["round"], each["site"]) not in refused:
            problems.append(f"accepted in round {each['round']} from site {each['site']}: {each['what']}")
    return problems + _growth(run.sizes)


def _growth(sizes: list[tuple[int, int]]) -> list[str]:
    """Compare the last quarter with the second one, in which all has been there once."""
    n = len(sizes) // 4
    if n < 4:
        return []
    told = []
    for i, what, most in ((0, "memory", 1.1), (1, "open files", 1.5)):
        before, after = (statistics.median(size[i] for size in part) for part in (sizes[n : 2 * n], sizes[-n:]))
        told += [f"{what} of the server: {before:.3g}, then {after:.3g}"] if after > most * before else []
    return told


def _of_units(folder: Path, settings: serial.Settings, refused: set[tuple[int, int]]) -> list[str]:
    axes = json.loads((folder / "units.json").read_text())["axes"]
    lost = sum(settings["rounds"] - count for axis in axes for count in axis["counts"])
    meant = serial.units_lost(settings, refused)
    print(f"units' rounds lost: {lost}; those of refused updates: {meant}")
    return [] if lost == meant else [f"{lost} units' rounds were lost, {meant} refused"]


def _print(run: Run, faults: list[Fault], refused: set[tuple[int, int]], lines: list[Any], took_s: float) -> None:
    after: dict[str, list[int]] = {kind: [] for kind in WAYS}
    of_site = {k: sorted((f for f in faults if f.site == k), key=lambda f: f.round) for k in range(len(run.sites))}
    spoilt_at = {(each["round"], each["site"]): each["what"].partition(":")[0] for each in run.told()}
    by_kind = Counter[str]()
    for round, site in sorted(refused):
        before = [fault for fault in of_site[site] if fault.round <= round]
        by_kind[spoilt_at.get((round, site), before[-1].kind if before else "none")] += 1
    print(
        "| kind | faults | updates spoilt | of these refused | updates lost, and what followed |\n" + "|---" * 5 + "|"
    )
    for kind in after:
        bad = [e for e in run.told() if e["what"].startswith(kind) and e["what"] != spoilt.UPLOADS[2]]
        good = sum((each["round"], each["site"]) in refused for each in bad)
        print(f"| {kind} | {run.happened[kind]} | {len(bad)} | {good} | {by_kind[kind]} |")
    print(f"| all | {run.happened.total()} | | | {len(refused)} of {len(lines) * len(run.sites)} |")
    if by_kind["none"]:
        print(f"updates lost before any fault of their site: {by_kind['none']}")
    print(f"{took_s:.0f} s, {len(lines)} rounds")
    for i, what in ((0, "memory, MB"), (1, "open files")):
        series = [size[i] / (1e6 if i == 0 else 1) for size in run.sizes]
        quarters = [series[j * len(series) // 4 : (j + 1) * len(series) // 4] for j in range(4)]
        print(
            f"server's {what}, median of each quarter: "
            + ", ".join(f"{statistics.median(q):.0f}" for q in quarters if q)
        )
