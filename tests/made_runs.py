"""Run folders made up by hand, for tables, pages and pictures."""

import json
from pathlib import Path
from typing import Any

MEMORY = {"weights": 1e6, "gradients": 1e6, "optimizer": 2e6, "activations": 0.5e6}


def make_run(
    folder: Path,
    *,
    num_rounds: int = 4,
    accuracy: float | None = 0.9,
    bytes_due: float = 1e6,
    units: dict[str, Any] | None = None,
    summary: bool = True,
    changes: dict[int, dict[str, Any]] | None = None,
    **config: Any,
) -> Path:
    """Write a run that evaluates every second round and ends at ``accuracy``; costs grow evenly."""
    folder.mkdir(parents=True)
    settings = {"recipe": "tiny", "method": "ist", "workers": 4, "runtime": "processes", "rounds": num_rounds}
    settings |= {
        "local_steps": 20,
        "seed": 0,
        "partition": {"reshuffle": 0.1},
        "optimizer": {"name": "SGD", "lr": 0.1},
    }
    settings |= {"versions": {"skerry": "0.1.0", "torch": "2.13.0"}} | config
    (folder / "config.json").write_text(json.dumps(settings))
    lines = []
    for i in range(num_rounds):
        done, evaluated = i + 1, i % 2 == 1
        metric: dict[str, Any] = {
            "round": i,
            "time_s": 2.0 * done,
            "local_s": 1.5 * done,
            "exchange_s": 0.3 * done,
        }
        metric |= {"evaluate_s": 0.1 * done, "checkpoint_s": 0.1 * done, "lr": 0.1, "train_loss": 1 / done}
        metric |= {"loss": 2 / done if evaluated else None, "units_covered": 1.0, "refused": []}
        metric |= {"accuracy": accuracy - 0.1 * (num_rounds - done) if evaluated and accuracy else None}
        metric |= {"bytes_due": bytes_due * done, "bytes_sent": 1.1 * bytes_due * done, "flop": 3e9 * done}
        lines.append(json.dumps(metric | (changes or {}).get(i, {})) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    if units is not None:
        (folder / "units.json").write_text(json.dumps(units))
    if summary:
        sizes = {"full": 1000, "subnet": 250}
        (folder / "summary.json").write_text(
            json.dumps({"parameters": sizes, "memory_bytes": MEMORY, "finished": True})
        )
    return folder
