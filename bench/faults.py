"""Faults in elastic runs of real processes: what is lost, how long the others stall, how much work is left (Linux).

    python bench/faults.py --out rows.jsonl               # each fault in each phase, with 2, 3 and 4 processes
    python bench/faults.py --faults kill,stop --sizes 4   # some of them

A small net on scikit-learn's digits. A process waits in the phase until its fault has come. The faults of a network
(``link``: down and up again; ``cut``: it only receives; ``spoil``: bits change; ``forge``: bits change, and the sums of
TCP are right) need root: each process is on a host of its own, and the store too. A row that ``--out`` has already is
not measured again.

Checked: everybody who should ends, with the same loss; each unit is trained once per round but for the rounds that the
record calls lost, at most those of the victim; rounds only go on; no process is left, and survivors have no more open
files than before. Who has losses of NaN in a round is refused. Who becomes late, 20 times slower, is left out of a
round, and comes in again. Bits that change for as long as a lease may look like a cut. A row says, in seconds:

- detected: from the fault until the first survivor knows; regrouped: from then until the new processes have agreed;
- stall: the longest pause between two rounds of a survivor, less the usual one (median of survivors, and the worst);
- newcomer: from the start of a process (imports are over) until it has taken its first local step.
"""

import argparse
import json
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "distributed"))  # hosts.py is there, and what it imports

import torch
from broken_links import BreakableHosts, enter
from sklearn.datasets import load_digits
from torch import nn

import skerry
from skerry.callbacks import Callback
from skerry.runtimes.elastic.generation import Generation, _GroupWire
from skerry.runtimes.elastic.membership import Membership
from skerry.runtimes.peers import Peers

PHASES = ("local steps", "boundary", "transfer", "commit", "evaluation", "checkpoint", "group creation")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "leave": signal.SIGTERM}
NETWORK = ("link", "cut", "spoil", "forge")
FAULTS = (*SIGNALS, *NETWORK, "store", "join")
OTHERS = ("slow", "late", "nan")  # in local steps
UNITS, ROUNDS, AT = 64, 16, 6
LEASE_S, STOPPED_S, STORE_DOWN_S, LATE_S = 1.5, 4.0, 1.0, 0.7
PORT = 29400  # of a store on a host of its own


class Member:
    """One process of a run: trains, writes what happens when to ``events``, and inflicts its fault on itself."""

    def __init__(self, folder: Path, address: str, setup: dict[str, Any]) -> None:
        self.folder, self.address, self.setup = folder, address, setup
        self.delay_s, self.round, self.generations, self.done = setup["delay_s"], -1, 0, False
        self.is_nan = False
        folder.mkdir(parents=True)
        self.events = (folder / "events").open("w", buffering=1)

    def tell(self, what: str, **more: Any) -> None:
        self.events.write(json.dumps({"t": time.time(), "what": what, **more}) + "\n")

    def run(self) -> None:
        os.dup2(os.open(self.folder / "said", os.O_WRONLY | os.O_CREAT), 2)
        torch.set_num_threads(1)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._hook()
        self._prepare()
        self.tell("ready")
        while self.setup["waits"] and not (self.folder / "go").exists():
            time.sleep(0.01)
        self.tell("start")
        self._take_part()

    def _take_part(self) -> None:
        settings = {key: self.setup[key] for key in ("minimum", "patience_s", "late_s")}
        with skerry.Elastic(self.address, "faults", maximum=16, lease_s=LEASE_S, grace_s=2.0, **settings) as elastic:
            self.tell("member", uid=elastic.uid)
            try:
                result = elastic.run(self._train)
            finally:
                for change in elastic.changes:
                    who = {"members": change.members, "gone": change.lost, "joined": change.joined}
                    self.tell("change", round=change.round, lost=change.units_lost, **who)
        trained = int(result.state.trained.sum())
        self.tell("end", loss=result.score.loss, accuracy=result.score.accuracy, trained=trained, files=_open_files())

    def _prepare(self, seed: int = 0) -> None:
        """Make what does not depend on the number of processes, before others wait for this one."""
        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, UNITS), nn.ReLU(), nn.Linear(UNITS, 10))
        self.plan = skerry.discover(self.model, self.x[:4])

    def _train(self, runtime: Any) -> Any:
        self.generations += 1
        x, y, n = self.x, self.y, runtime.num_processes
        return skerry.train(
            self.model,
            self._loss,
            skerry.Shards(x[:1500], y[:1500], skerry.split(y[:1500], n, "iid", seed=0), batch_size=32, seed=0),
            plan=self.plan,
            algorithm=skerry.ist(n, local_steps=5),
            optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.2),
            num_rounds=self.setup["rounds"],
            test=skerry.training.Test(x[1500:], y[1500:], every=self.setup["every"]),
            checkpoints=skerry.Checkpoints(self.folder.parent / "checkpoints", every_s=self.setup["checkpoint_s"]),
            runtime=runtime,
            verify=False,
            deadline="none" if self.setup["late_s"] is None else "adaptive",
            callbacks=self._callbacks(),
        )

    def _callbacks(self) -> list[Callback]:
        return [Callback(on_step=self._on_step, on_evaluate=self._on_evaluate)]

    def _loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if outputs.requires_grad:  # a local step, which takes its time
            time.sleep(self.delay_s)
        return nn.functional.cross_entropy(outputs, labels) * (float("nan") if self.is_nan else 1.0)

    def _on_step(self, session: Any, worker: Any, loss: Any) -> None:
        if worker.steps_done == 1:
            self.round = worker.round
            self.tell("round", round=worker.round, num=session.setup.runtime.num_processes)
            if worker.round == 1:
                self.tell("files", files=_open_files())

    def _on_evaluate(self, session: Any, score: Any, full: Any) -> None:
        self.tell("score", round=self.round, accuracy=score.accuracy)

    def _hook(self) -> None:
        """Call ``_at`` at the beginning of each phase."""

        def before(owner: Any, name: str, phase: str) -> None:
            original = getattr(owner, name)

            def hooked(*args: Any, **kwargs: Any) -> Any:
                self._at(phase or str(args[-1]))
                return original(*args, **kwargs)

            setattr(owner, name, hooked)

        before(Peers, "at", "")
        before(Generation, "next_decision", "boundary")
        before(_GroupWire, "isend", "transfer")
        before(Membership, "commit", "commit")
        original = Membership.join_group

        def join_group(membership: Any, decision: Any) -> None:
            self.tell("members", num=len(decision.members))
            if self.generations:
                self._at("group creation")
            original(membership, decision)

        Membership.join_group = join_group  # type: ignore[method-assign]
        commit = Generation.keep

        def keep(generation: Any, beginning: Any) -> Any:
            store = commit(generation, beginning)
            self.tell("agreed")
            return store

        Generation.keep = keep  # type: ignore[method-assign]

    def _at(self, phase: str) -> None:
        setup, self.is_nan = self.setup, self.is_nan and phase != "boundary"  # for a round
        if self.done or phase != setup["phase"] or not setup["fault"]:
            return
        if phase != "group creation" and self.round < AT:
            return
        self.done = True
        self.tell("fault")
        if setup["fault"] in ("slow", "late"):
            self.delay_s *= 5 if setup["fault"] == "slow" else 20
        elif setup["fault"] == "nan":
            self.is_nan = True
        elif setup["fault"] in SIGNALS:
            os.kill(os.getpid(), SIGNALS[setup["fault"]])
        else:
            _wait_for(self.folder / "broken")


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _member(folder: Path, address: str, setup: dict[str, Any]) -> None:
    if setup["host"]:
        enter(setup["host"])
    with suppress(KeyboardInterrupt):
        Member(folder, address, setup).run()
    os._exit(0)


def _store(address: str, host: str) -> None:
    if host:
        enter(host)
    name, _, port = address.rpartition(":")
    store = skerry.runtimes.serve_store(int(port), name)
    signal.pause()
    del store


class Run:
    """A run of some processes in a folder of its own, with a store.

    Attributes:
        works: what processes do: a member, and the store.
    """

    works: tuple[Callable[..., None], Callable[..., None]] = (_member, _store)

    def __init__(
        self,
        folder: Path,
        num: int,
        *,
        rounds: int = ROUNDS,
        delays: list[float] | None = None,
        hosts: BreakableHosts | None = None,
    ) -> None:
        self.folder, self.num, self.members = folder, num, list[Any]()
        self.context = multiprocessing.get_context("forkserver")
        self.setup = {"minimum": 1 if num < 3 else 2, "patience_s": 30.0, "rounds": rounds, "phase": "", "fault": ""}
        self.setup |= {"waits": False, "late_s": None, "host": "", "every": 0, "checkpoint_s": 0}
        self.delays, self.hosts = delays or [0.02] * 8, hosts
        if hosts is not None:
            self.address, self._host = f"{hosts.addresses[-1]}:{PORT}", hosts.names[-1]
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.address, self._host = f"127.0.0.1:{free.getsockname()[1]}", ""
        self.store = self._start(self.works[1], self.address, self._host)

    def _start(self, work: Any, *args: Any) -> Any:
        process = self.context.Process(target=work, args=args, daemon=True)
        process.start()
        return process

    def join(self, **more: Any) -> None:
        k = len(self.members)
        setup = {**self.setup, "delay_s": self.delays[k % len(self.delays)], **more}
        if self.hosts is not None:
            setup["host"] = self.hosts.names[k]
        self.members.append(self._start(self.works[0], self.folder / f"{k}", self.address, setup))

    def begin(self, num: int, **victim: Any) -> None:
        """Start the first processes, the last one with its fault, and let them meet when all are ready."""
        for k in range(num):
            self.join(waits=True, **(victim if k == num - 1 else {}))
        for k in range(num):
            while not any(event["what"] == "ready" for event in self.events(k)):
                time.sleep(0.02)
        for k in range(num):
            (self.folder / f"{k}" / "go").touch()

    def restart_store(self) -> float:
        began = time.time()
        self.store.kill()
        self.store.join()
        time.sleep(STORE_DOWN_S)
        self.store = self._start(self.works[1], self.address, self._host)
        return began

    def events(self, k: int) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / f"{k}" / "events").read_text().splitlines()]
        return []

    def round(self) -> int:
        return max(
            (e["round"] for k in range(len(self.members)) for e in self.events(k) if e["what"] == "round"), default=-1
        )

    def wait_for_fault(self, k: int) -> None:
        """Wait until process ``k`` is in the phase of its fault."""
        until = time.time() + 60
        while time.time() < until and not any(e["what"] == "fault" for e in self.events(k)):
            time.sleep(0.005)

    def inflict(self, fault: str, k: int) -> None:
        """Do what process ``k`` cannot do by itself, and undo what passes."""
        if fault in NETWORK:
            assert self.hosts is not None
            self.hosts.break_(k, fault)
        elif fault == "store":
            self.restart_store()
        elif fault == "join":
            (self.folder / f"{len(self.members) - 1}" / "go").touch()
        (self.folder / f"{k}" / "broken").touch()
        if fault in NETWORK:
            time.sleep(STOPPED_S)
            self.hosts.mend(k, fault)
        elif fault == "stop":
            time.sleep(STOPPED_S)
            with suppress(ProcessLookupError):
                os.kill(self.members[k].pid, signal.SIGCONT)

    def end(self, timeout_s: float = 120.0) -> list[str]:
        """Wait for all processes; return what is wrong."""
        until = time.time() + timeout_s
        for member in self.members:
            member.join(max(0.1, until - time.time()))
        hung = [k for k, member in enumerate(self.members) if member.is_alive()]
        for process in (*self.members, self.store):
            process.kill()
            process.join()
        return [f"{k} hangs" for k in hung]


def one_fault(folder: Path, num: int, fault: str, phase: str) -> dict[str, Any]:
    """Run ``num`` processes with one fault; return the row."""
    with BreakableHosts(num + 2) if fault in NETWORK else nullcontext() as hosts:
        is_back = fault in ("late", "stop", *NETWORK)  # while the others still train
        run, victim = Run(folder, num, rounds=(5 if is_back else 1) * ROUNDS, hosts=hosts), num - 1
        run.setup |= {"late_s": LATE_S if fault == "late" else None, "phase": phase}
        run.setup["every"] = int(phase == "evaluation")
        if hosts is not None:
            hosts.relayed(victim)
        run.begin(num, fault=fault)
        newcomers = (phase == "group creation") + (fault == "join")
        for _ in range(newcomers):
            run.join(waits=True)
        if phase == "group creation":
            while run.round() < AT:
                time.sleep(0.02)
            (run.folder / f"{num}" / "go").touch()
        run.wait_for_fault(victim)
        run.inflict(fault, victim)
        problems = run.end()
        row = _judged(run, fault, victim, problems) | {"n": num, "fault": fault, "phase": phase}
        return row | ({"changed": hosts.num_changed(victim)} if fault in ("spoil", "forge") else {})


def _not_left_out(events: list[list[dict[str, Any]]], victim: int) -> list[str]:
    """Return what is wrong unless the others lost the victim in a round, and it came in again later."""
    told = [event for k, own in enumerate(events) if k != victim for event in own if event["what"] == "change"]
    who = {event["uid"] for k, own in enumerate(events) if k == victim for event in own if event["what"] == "member"}
    gone = min((event["round"] for event in told if who & {*event["gone"]}), default=None)
    if gone is None:
        return ["was not left out"]
    back = any(event["round"] > gone and who & {*event["joined"]} for event in told)
    return [] if back else ["did not come in again"]


def _judged(run: Run, fault: str, victim: int, problems: list[str]) -> dict[str, Any]:
    events = [run.events(k) for k in range(len(run.members))]
    began = next((e["t"] for e in events[victim] if e["what"] == "fault"), 0.0)
    problems += [] if began else ["no fault"]
    ended = {k: e[-1] for k, e in enumerate(events) if e and e[-1]["what"] == "end"}
    expected = set(range(len(events))) - ({victim} if fault in ("kill", "leave") else set())
    problems += [f"{k} did not end" for k in expected - ended.keys()]
    problems += ["losses differ"] if len({e["loss"] for e in ended.values()}) > 1 else []
    changes = {
        json.dumps([e["round"], e["members"], e["lost"]]) for own in events for e in own if e["what"] == "change"
    }
    lost = sum(json.loads(change)[2] for change in changes)
    missing = [run.setup["rounds"] * UNITS - e["trained"] for e in ended.values()]
    most = 0 if fault in ("join", "slow", "store") else -(-UNITS // run.num) + 1
    if fault == "nan" and missing:  # refused by all, who stay together
        problems += [] if 1 <= max(missing) <= most else [f"{max(missing)} unit-rounds refused"]
        lost += max(missing)
    if fault == "late":
        problems += _not_left_out(events, victim)
    problems += ["units do not add up"] if any(m != lost for m in missing) else []
    problems += [f"{lost} unit-rounds lost"] if lost > most else []
    stalls, detected, regrouped, newcomer = [], [], [], None
    for k, own in enumerate(events):
        rounds = _rounds(own)
        if any(b["round"] < a["round"] for a, b in pairwise(rounds)):
            problems.append(f"rounds of {k} go back")
        files = [e["files"] for e in own if "files" in e]
        if len(files) == 2 and files[1] > files[0] + 2 * run.num * max(1, len(changes)):
            problems.append(f"{k}: {files[0]} open files, then {files[1]}")
        if k != victim and k < run.num and len(rounds) > 2:
            gaps = [(b["t"] - a["t"], b["t"]) for a, b in pairwise(rounds)]
            usual = statistics.median(gap for gap, _ in gaps)
            stalls.append(max([gap for gap, end in gaps if end > began], default=usual) - usual)
            detected += [e["t"] - began for e in own if e["what"] == "members" and e["t"] > began][:1]
            regrouped += [e["t"] - began for e in own if e["what"] == "agreed" and e["t"] > began][:1]
        if k >= run.num and rounds:
            newcomer = rounds[0]["t"] - next(e["t"] for e in own if e["what"] == "start")
    return {
        "lost": lost,
        "stall": statistics.median(stalls) if stalls else None,
        "worst": max(stalls, default=None),
        "detected": min(detected, default=None),
        "regrouped": min(regrouped) - min(detected) if detected and regrouped else None,
        "newcomer": newcomer,
        "accuracy": next((e["accuracy"] for e in ended.values()), None),
        "problems": problems,
    }


def _rounds(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in own if event["what"] == "round"]


COLUMNS = ("n", "fault", "phase", "lost", "detected", "regrouped", "stall", "worst", "newcomer", "accuracy", "problems")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(value) or "-"
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run all cases; exit code 1 if an invariant is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=",".join((*FAULTS, *OTHERS)))
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--sizes", default="2,3,4", help="numbers of processes")
    parser.add_argument("--out", type=Path, help="a file of JSON lines, to which rows are added")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left
    multiprocessing.get_context("forkserver").set_forkserver_preload(["skerry", "sklearn.datasets", "__main__"])
    faults, phases, sizes = (each.split(",") for each in (options.faults, options.phases, options.sizes))
    cases = [(int(n), f, p) for n in sizes for f in faults for p in (phases if f in FAULTS else PHASES[:1])]
    cases = [case for case in cases if case[:2] != (2, "late")]  # of two nobody is left out
    with tempfile.TemporaryDirectory() as folder:
        broken = _table(Path(folder), cases, options.out)
    sys.exit(broken)


def _table(folder: Path, cases: list[tuple[int, str, str]], out: Path | None) -> bool:
    """Print a row for each case; return whether an invariant is broken."""
    lines = out.read_text().splitlines() if out is not None and out.exists() else []
    rows = {(row["n"], row["fault"], row["phase"]): row for row in map(json.loads, lines)}
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for number, case in enumerate(cases):
        if case not in rows:
            rows[case] = one_fault(folder / f"{number}", *case)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(rows[case]) + "\n")
        print("| " + " | ".join(_cell(rows[case].get(name)) for name in COLUMNS) + " |", flush=True)
    return any(rows[case]["problems"] for case in cases)


if __name__ == "__main__":
    main()
