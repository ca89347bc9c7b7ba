"""Bytes of exchanges: planned, packed by the runtime, and counted by the kernel on the hosts' own interfaces.

    python bench/distributed/counted_bytes.py [--hosts 4] [--hidden 2048] [--wire bf16]      # as root, with iproute2

An MLP 1024-h-h-16 is trained by IST on hosts (``hosts.py``) whose links have no limit, once for 4 rounds and once for
14. The difference between the two runs' counters is the traffic of ten exchanges. It leaves out start-up and the
evaluation at the end, and includes TCP headers, acknowledgements and heartbeats.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from hosts import Hosts, why_not
from random_mlp import random_data, train

import skerry

ROUNDS = (4, 14)


def work(hidden: int, rounds: int, reshuffle: float, wire: skerry.runtimes.WireFormat, out: Path) -> None:
    """Train as one of the processes; write how many bytes were due and how many were sent."""
    torch.set_num_threads(1)
    runtime = skerry.Processes.join(60.0, wire=wire)
    n, sizes = runtime.num_processes, [1024, hidden, hidden, 16]
    data = random_data(sizes, n, samples=32, batch_size=32)
    result = train(runtime, sizes, data, skerry.ist(n, local_steps=1, reshuffle=reshuffle), rounds)
    totals = {"due": result.state.totals["bytes_due"], "sent": result.store.bytes_sent}
    (out / f"{runtime.rank}.json").write_text(json.dumps(totals))
    runtime.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--wire", choices=["exact", "bf16"], default="exact")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rounds, reshuffle, out = options.worker
        work(options.hidden, int(rounds), float(reshuffle), options.wire, Path(out))
        return
    if (reason := why_not()) is not None:
        raise SystemExit(f"hosts can't be made here: {reason}")
    print(f"{options.hosts} hosts, hidden {options.hidden}, wire {options.wire}; MB per worker in ten exchanges\n")
    print("| reshuffle | planned | packed | counted | counted / packed |")
    print("|---:|---:|---:|---:|---:|")
    for reshuffle in ("1.0", "0.1"):
        found = []
        for rounds in ROUNDS:
            with tempfile.TemporaryDirectory() as folder, Hosts(options.hosts) as hosts:
                script = [str(Path(__file__).absolute()), "--hidden", str(options.hidden), "--wire", options.wire]
                script += ["--worker", str(rounds), reshuffle, folder]
                outcome = hosts.torchrun(script, out=Path(folder) / "logs", timeout_s=900)
                if any(outcome.codes):
                    raise SystemExit(outcome.logs[0].read_text()[-3000:])
                totals = [json.loads(p.read_text()) for p in Path(folder).glob("*.json")]
                sent = sum(t["sent"] for t in totals) / len(totals)
                found.append((totals[0]["due"], sent, sum(outcome.sent_bytes) / len(outcome.sent_bytes)))
        due, packed, counted = (b - a for a, b in zip(*found, strict=True))
        print(
            f"| {reshuffle} | {due / 1e6:.2f} | {packed / 1e6:.2f} | {counted / 1e6:.2f} | {counted / packed:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
