"""What a round costs beside local steps and the wire, and how well the exchange uses a link.

    python bench/distributed/overhead.py [--hidden 2048] [--hosts 2] [--rate 100mbit]   # as root; iproute2, iperf3

An MLP as wide as the speech model's (4096-h-h-h-12, batch norm, batch 128, random data) is trained by IST with 20 local
steps, on hosts with slow links (``hosts.py``) and one thread each. Two hosts by default, for two cores. For each round,
in the mean over rounds and workers:

- *local*: local steps. *slower*: waiting for the slowest worker.
- *wire*: from the first message that is packed to the last that is unpacked. Work done while messages are under way
  (packing the next, unpacking the last, copying what stays) is included, and shows as a lower rate.
- *rest*: everything else: planning, cutting, copying, checks, records.
- *strict*: everything except local steps, waiting for the slowest, and the time that iperf3 would need for the bytes.

The rate, bytes over *wire*, is compared with what iperf3 reaches between two of the same hosts.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hosts import Hosts, why_not
from random_mlp import random_data, train

import skerry
from skerry.runtimes import Report

ROUNDS, STEPS, BATCH = 6, 20, 128


class Clocked(skerry.Processes):
    """A runtime that measures how long it waits, in seconds: for the wire and for the slowest worker."""

    spent: dict[str, float]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        run = self._wire.run

        def clocked(*args: Any, **more: Any) -> None:
            started = time.perf_counter()
            run(*args, **more)
            self.spent["wire"] += time.perf_counter() - started

        self._wire.run = clocked  # type: ignore[method-assign]

    def reports(self, mine: Report, agreement: Mapping[str, str]) -> list[Report]:
        """Collect the reports, and count the time spent waiting for the slowest worker."""
        started = time.perf_counter()
        reports = super().reports(mine, agreement)
        self.spent["slower"] += time.perf_counter() - started
        return reports


def work(hidden: int, out: Path) -> None:
    """Train as one of the processes and write what a round cost."""
    torch.set_num_threads(1)
    Clocked.spent = defaultdict(float)
    runtime = Clocked.join(60.0)
    n, sizes = runtime.num_processes, [4096, hidden, hidden, hidden, 12]
    stamps: list[dict[str, float]] = []

    def on_round(session: skerry.Session, record: skerry.training.Record) -> None:
        stamps.append({**Clocked.spent, **record.totals, "now": time.perf_counter()})

    data = random_data(sizes, n, samples=512, batch_size=BATCH)
    train(
        runtime, sizes, data, skerry.ist(n, local_steps=STEPS), ROUNDS, [skerry.callbacks.Callback(on_round=on_round)]
    )
    # The first round warms up; the last exchanges shared tensors only, and evaluates.
    first, last = stamps[0], stamps[-2]
    rounds = len(stamps) - 2
    part = {key: (last[key] - first[key]) / rounds for key in ("local_s", "slower", "wire", "bytes_sent", "now")}
    (out / f"{runtime.rank}.json").write_text(json.dumps(part))
    runtime.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.hidden, options.worker)
        return
    if (reason := why_not()) is not None:
        raise SystemExit(f"hosts can't be made here: {reason}")
    with tempfile.TemporaryDirectory() as folder, Hosts(options.hosts, rate=options.rate) as hosts:
        with (Path(folder) / "iperf3.log").open("w") as log:
            server = hosts.popen(0, ["iperf3", "-s", "-1"], log=log)
        time.sleep(0.5)
        measured = json.loads(hosts.run(1, ["iperf3", "-c", hosts.addresses[0], "-t", "4", "-J"]).stdout)
        server.wait(10)
        link = measured["end"]["sum_received"]["bits_per_second"]
        script = [str(Path(__file__).absolute()), "--hidden", str(options.hidden), "--worker", folder]
        outcome = hosts.torchrun(script, out=Path(folder) / "logs", timeout_s=1800)
        if any(outcome.codes):
            print(outcome.logs[0].read_text()[-3000:], file=sys.stderr)
            raise SystemExit(f"exit codes {outcome.codes}")
        parts: list[dict[str, Any]] = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("*.json"))]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}
    rest = mean["now"] - mean["local_s"] - mean["slower"] - mean["wire"]
    strict = rest + mean["wire"] - mean["bytes_sent"] * 8 / link
    rate = mean["bytes_sent"] * 8 / mean["wire"]
    print(f"{options.hosts} hosts, {options.rate}, hidden {options.hidden}, {STEPS} local steps, {ROUNDS - 2} rounds\n")
    print("| local s | slower s | wire s | rest s | rest / local | strict / local | sent MB | Mbit/s | of iperf3 |")
    print("|---:" * 9 + "|")
    print(
        f"| {mean['local_s']:.2f} | {mean['slower']:.2f} | {mean['wire']:.2f} | {rest:.3f} | "
        f"{rest / mean['local_s']:.1%} | {strict / mean['local_s']:.1%} | {mean['bytes_sent'] / 1e6:.1f} | "
        f"{rate / 1e6:.1f} | {rate / link:.0%} of {link / 1e6:.1f} |"
    )


if __name__ == "__main__":
    main()
