"""Bytes of exchanges: planned, packed by the runtime, and counted by the kernel on the hosts' own interfaces.

    python bench/counted.py [--hosts 4] [--hidden 2048] [--wire bf16]      # as root, with iproute2

An MLP 1024-h-h-16 is trained by IST on hosts (``hosts.py``; links without a limit), once for 4 rounds and once for 14.
The difference of the two runs' counters is that of ten exchanges: start-up and the evaluation at the end cancel out,
TCP's headers and acknowledgements and the signs of life stay in.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from hosts import Hosts, why_not
from torch.nn import functional as F

import skerry
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.image_mlp import mlp_rules

ROUNDS = (4, 14)


def work(hidden: int, rounds: int, reshuffle: float, wire: skerry.runtimes.WireFormat, out: Path) -> None:
    """Train as one of the processes and write what was due and what was sent."""
    torch.set_num_threads(1)
    runtime = skerry.Processes.join(60.0, wire=wire)
    n = runtime.num_processes
    with torch.device("meta"):
        model = MLP([1024, hidden, hidden, 16])
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(32 * n, 1024, generator=rng), torch.randint(0, 16, (32 * n,), generator=rng)
    result = skerry.train(
        model,
        F.cross_entropy,
        skerry.Shards(x, y, skerry.split(y, n, "iid", 0), batch_size=32, seed=0),
        plan=skerry.Plan.from_rules(model, mlp_rules(2)),
        algorithm=skerry.ist(n, local_steps=1, reshuffle=reshuffle),
        optimizer=lambda p: torch.optim.SGD(p, 0.01),
        num_rounds=rounds,
        runtime=runtime,
        start=lambda m: skerry.weights.FromInitializer(m, seed=0),
    )
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
    print(f"{options.hosts} hosts, hidden {options.hidden}, wire {options.wire}; MB a worker in ten exchanges\n")
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
                told = [json.loads(p.read_text()) for p in Path(folder).glob("*.json")]
                sent = sum(t["sent"] for t in told) / len(told)
                found.append((told[0]["due"], sent, sum(outcome.sent_bytes) / len(outcome.sent_bytes)))
        due, packed, counted = (b - a for a, b in zip(*found, strict=True))
        print(
            f"| {reshuffle} | {due / 1e6:.2f} | {packed / 1e6:.2f} | {counted / 1e6:.2f} | {counted / packed:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
