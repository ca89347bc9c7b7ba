"""A soak of faults: 8 processes, the slowest 5 times slower than the fastest, a fault every 15 s (Linux).

    python bench/soak.py --seconds 120 --out soak              # Skerry's ist, without faults and with
    python bench/soak.py --seconds 120 --out soak --torchft    # torchft's DiLoCo, too: pip install torchft==0.2.0
    python bench/soak.py --replay soak/skerry.json --seeds 10  # what loses accuracy: samples, or rounds of lost units

The net, data and faults are those of ``faults.py``. While all are there a fault kills, stops, or ends a process, or the
store (torchft: the lighthouse) is killed and comes back after a second; else a new process comes. *Samples* are those
of rounds that counted. A pause is the time between two rounds in which a fault of another process came, less the usual
one. Goodput is samples per second, as a part of those without faults. Accuracy is compared after the
same number of rounds, and after the same number of samples.

One run has 297 test samples, and so says little about half a point. A replay trains serially, with the members and the
lost workers that a run had in each round, for several seeds.
"""

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
import warnings
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from faults import STOPPED_S, UNITS, Member, Run, _rounds
from torch import nn

import skerry
from skerry.callbacks import Callback

NUM, BATCH, STEPS, EVERY = 8, 32, 5, 5
DELAYS = [0.004 * (1 + 4 * k / 7) for k in range(NUM)]
TIMEOUT = timedelta(seconds=30)


class Rival(Member):
    """The same training by torchft: every process has the whole net, and DiLoCo's outer step."""

    def _hook(self) -> None:
        """Do nothing: faults come from outside."""

    def _take_part(self) -> None:
        from torchft import Manager, ProcessGroupGloo
        from torchft.local_sgd import DiLoCo

        model, loss_fn, rounds = self.model, nn.functional.cross_entropy, self.setup["rounds"]
        inner = torch.optim.SGD(model.parameters(), 0.2)
        outer = torch.optim.SGD(model.parameters(), 0.7, momentum=0.9, nesterov=True)
        rank = int(self.folder.name)
        parts = skerry.split(self.y[:1500], NUM, "iid", seed=0)
        data = skerry.Shards(self.x[:1500], self.y[:1500], parts, batch_size=BATCH, seed=0)
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

        def load(state: Any) -> None:
            model.load_state_dict(state["model"])
            inner.load_state_dict(state["inner"])

        manager = Manager(
            pg=ProcessGroupGloo(timeout=TIMEOUT), load_state_dict=load, min_replica_size=self.setup["minimum"],
            state_dict=lambda: {"model": model.state_dict(), "inner": inner.state_dict()},
            use_async_quorum=False, timeout=TIMEOUT, quorum_timeout=TIMEOUT, connect_timeout=TIMEOUT, rank=0,
            world_size=1, store_addr="127.0.0.1", store_port=store.port, replica_id=f"worker{rank}",
            hostname="127.0.0.1", init_sync=False, lighthouse_addr=f"http://{self.address}",
        )  # fmt: skip
        with DiLoCo(manager, [model], inner, outer, sync_every=STEPS):
            for step in itertools.count():
                if step % STEPS == 0:
                    self._score(manager.current_step(), manager.batches_committed())
                    if manager.current_step() >= rounds:
                        break
                ((x, y),) = data.batches(rank % NUM, step, 1)
                inner.zero_grad()
                time.sleep(self.delay_s)
                loss_fn(model(x), y).backward()
                inner.step()  # torchft exchanges here
        accuracy, samples = self.scored, manager.batches_committed() * STEPS * BATCH
        self.tell("end", accuracy=accuracy, samples=samples)

    def _score(self, round: int, committed: int) -> None:
        self.tell("round", round=round)
        if round % EVERY == 0:
            with torch.no_grad():
                hits = self.model(self.x[1500:]).argmax(1) == self.y[1500:]
            self.scored = hits.float().mean().item()
            self.tell("score", round=round - 1, accuracy=self.scored, samples=committed * STEPS * BATCH)


def _rival(folder: Path, address: str, setup: dict[str, Any]) -> None:
    Rival(folder, address, setup).run()
    os._exit(0)


def _lighthouse(address: str, host: str) -> None:
    from torchft.coordination import LighthouseServer

    port = address.rpartition(":")[2]
    server = LighthouseServer(bind=f"[::]:{port}", min_replicas=2, join_timeout_ms=1000, heartbeat_timeout_ms=1500)
    signal.pause()
    del server


class RivalRun(Run):
    """A run of torchft, whose store is its lighthouse."""

    works = (_rival, _lighthouse)


def soak(run: Run, every_s: float | None, seed: int) -> dict[str, Any]:
    """Run 8 processes to the end, with a fault every so many seconds."""
    rng, kinds, told = random.Random(seed), [], list[float]()
    run.setup |= {"every": EVERY, "checkpoint_s": 10}
    for _ in range(NUM):
        run.join()
    while run.round() < 1:
        time.sleep(0.1)
    began, at = time.time(), list[tuple[float, int]]()
    while any(member.is_alive() for member in run.members):
        time.sleep(0.2)
        alive = [k for k, member in enumerate(run.members) if member.is_alive()]
        if (
            every_s
            and alive
            and time.time() > began + every_s * (len(at) + 1)
            and run.round() < run.setup["rounds"] - 5
        ):
            kind, k = rng.choice(["kill", "stop", "leave", "store"]) if len(alive) == NUM else "join", rng.choice(alive)
            kinds.append(kind)
            at.append((time.time(), k))
            _inflict(run, kind, k)
        if time.time() > began + 20 * run.setup["rounds"]:
            break
    events = [run.events(k) for k in range(len(run.members))]
    problems = run.end(1.0)
    ends = [own[-1] for own in events if own and own[-1]["what"] == "end"]
    for since, victim in at:
        others = [own for k, own in enumerate(events) if k != victim]
        told += [b["t"] - a["t"] for own in others for a, b in pairwise(_rounds(own)) if a["t"] - 0.1 < since < b["t"]]
    members, lost = _members(events, run.setup["rounds"])
    if isinstance(run, RivalRun):
        samples = max((end["samples"] for end in ends), default=0)
    else:
        samples = round(sum(n - len(gone) for n, gone in zip(members, lost, strict=True)) * STEPS * BATCH)
    return {
        "faults": kinds,
        "problems": problems + ([] if ends else ["nobody ended"]),
        "seconds": max((end["t"] for end in ends), default=time.time()) - began,
        "samples": samples,
        "accuracy": ends[0]["accuracy"] if ends else None,
        "pause": [statistics.median(told), max(told)] if told else None,
        "usual": statistics.median(b["t"] - a["t"] for own in events for a, b in pairwise(_rounds(own))),
        "curve": sorted({(e["round"] + 1, e["accuracy"]) for own in events for e in own if e["what"] == "score"}),
        "members": members,
        "lost": lost,
    }


def _inflict(run: Run, kind: str, k: int) -> None:
    if kind == "join":
        run.join()
    elif kind == "store":
        run.restart_store()
    else:
        os.kill(run.members[k].pid, {"kill": signal.SIGKILL, "leave": signal.SIGTERM, "stop": signal.SIGSTOP}[kind])
        if kind == "stop":
            time.sleep(STOPPED_S)
            os.kill(run.members[k].pid, signal.SIGCONT)


def _members(events: list[list[dict[str, Any]]], num_rounds: int) -> tuple[list[int], list[list[int]]]:
    """Return, for each round, the number of members, and the workers whose round was lost."""
    members, lost = [NUM] * num_rounds, [list[int]() for _ in range(num_rounds)]
    for event in (e for own in events for e in own if e["what"] == "round" and "num" in e):
        if event["round"] < num_rounds:
            members[event["round"]] = event["num"]
    changes = [e for own in events for e in own if e["what"] == "change" and e["lost"]]
    for change in changes:  # who is lost is the last worker here: all have data of the same kind
        k = change["round"] - 1
        members[k] = max(members[k], len(change["members"]) + len(change["gone"]) - len(change["joined"]))
        lost[k] = [members[k] - 1 - j for j in range(max(1, round(change["lost"] / UNITS * members[k])))]
    return members, lost


def replay(members: list[int], lost: list[list[int]], seed: int) -> float:
    """Train serially with so many members, of which some lose their round; return the accuracy."""
    member = Member.__new__(Member)
    member._prepare(seed)
    x, y, spoils = member.x, member.y, set[tuple[int, int]]()
    spoils.update((round, worker) for round, workers in enumerate(lost) for worker in workers)
    is_nan = [False]

    def on_step(session: Any, worker: Any, loss: Any) -> None:
        is_nan[0] = (worker.round, worker.number) in spoils and worker.steps_done < STEPS

    def loss_fn(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        spoilt = is_nan[0] and outputs.requires_grad
        is_nan[0] = is_nan[0] and not spoilt  # one is enough: this worker takes no further step
        return nn.functional.cross_entropy(outputs, labels) * (float("nan") if spoilt else 1.0)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = 0
        for num, same in itertools.groupby(members):
            end, is_first = end + len(list(same)), end == 0
            stop = Callback(on_round=lambda s, r, end=end: s.stop() if r.round == end - 1 < len(members) - 1 else None)
            stop.together = True
            result = skerry.train(
                member.model,
                loss_fn,
                skerry.Shards(
                    x[:1500], y[:1500], skerry.split(y[:1500], num, "iid", seed=seed), batch_size=BATCH, seed=seed
                ),
                plan=member.plan,
                algorithm=skerry.ist(num, local_steps=STEPS, seed=seed),
                optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.2),
                num_rounds=len(members),
                seed=seed,
                test=(x[1500:], y[1500:]),
                checkpoints=skerry.Checkpoints(folder, every_s=1e9, resume=not is_first),
                verify=False,
                callbacks=[Callback(on_step=on_step), stop],
            )
    assert result.score is not None
    return result.score.accuracy


def _replays(path: Path, seeds: int) -> None:
    """Print what four kinds of runs reach: mean and standard deviation over seeds."""
    told = json.loads(path.read_text())["with"]
    members, lost, none = told["members"], told["lost"], [list[int]() for _ in told["members"]]
    fair = round(sum(n - len(gone) for n, gone in zip(members, lost, strict=True)) / NUM)
    kinds = {
        "undisturbed": ([NUM] * len(members), none),
        f"undisturbed, {fair} rounds: as many samples as with faults": ([NUM] * fair, none[:fair]),
        "with these members, nothing lost": (members, none),
        "with these members and losses": (members, lost),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, run in kinds.items():
            found[kind].append(replay(*run, seed))
            print(json.dumps({"seed": seed, "kind": kind, "accuracy": found[kind][-1]}), flush=True)
    base = found["undisturbed"]
    for kind, reached in found.items():
        apart = [a - b for a, b in zip(reached, base, strict=True)]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        print(f"| {kind} | {statistics.mean(reached):.4f} | {100 * statistics.mean(apart):+.2f} ± {100 * error:.2f} |")


def _compared(without: dict[str, Any], told: dict[str, Any]) -> str:
    """Return the cells of a row: goodput, pauses, and accuracies after as many rounds, and as many samples."""
    rates = [each["samples"] / each["seconds"] for each in (without, told)]
    at = told["samples"] / (NUM * STEPS * BATCH)
    near = min(without["curve"], key=lambda point: abs(point[0] - at), default=(0, float("nan")))
    pause = "-" if told["pause"] is None else " / ".join(f"{s - told['usual']:.2f}" for s in told["pause"])
    return (
        f"{rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.0%} | {pause} | {without['accuracy']:.4f} | "
        f"{near[1]:.4f} (round {near[0]}) | {told['accuracy']:.4f}"
    )


def main() -> None:
    """Run the soak, or replay one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="which rounds of .35 s would take")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--torchft", action="store_true")
    parser.add_argument("--replay", type=Path, help="a file of an earlier soak")
    parser.add_argument("--seeds", type=int, default=10, help="of the replay")
    o = parser.parse_args()
    torch.set_num_threads(1)
    if o.replay:
        _replays(o.replay, o.seeds)
        return
    if o.torchft and importlib.util.find_spec("torchft") is None:
        parser.error("torchft is not here: pip install torchft==0.2.0, in an environment of its own")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left
    multiprocessing.get_context("forkserver").set_forkserver_preload(["skerry", "sklearn.datasets", "__main__"])
    print("| | samples/s | with faults | goodput | pause: median / worst, s | accuracy | of as many samples | faults |")
    print("|" + "---|" * 8, flush=True)
    o.out.mkdir(parents=True, exist_ok=True)
    for name, kind in {"skerry": Run, **({"torchft": RivalRun} if o.torchft else {})}.items():
        told = {}
        for which, every_s in (("without", None), ("with", o.every)):
            with tempfile.TemporaryDirectory() as folder:
                run = kind(Path(folder), NUM, rounds=int(o.seconds / 0.35), delays=DELAYS)
                told[which] = soak(run, every_s, o.seed)
            (o.out / f"{name}.json").write_text(json.dumps(told))
        print(f"| {name} | {_compared(told['without'], told['with'])} |", flush=True)
        print(told["with"]["faults"], *(each["problems"] for each in told.values()), flush=True)


if __name__ == "__main__":
    main()
