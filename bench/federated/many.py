"""Many sites on one machine, some of which train in each round: to the bits of the serial run."""

import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import serial
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
    own_bytes,
    processor_s,
    status_of,
)

HELP = """A server with keys and as many sites, each in a process of its own: copies of one that has imported
everything, so that memory is shared. The memory of a site is its part of what it shares (PSS)."""
_PATIENCE_S = 600.0


def main(folder: Path, sites: int, workers: int, rounds: int, hidden: int) -> list[str]:
    """Run it, print figures; return what is wrong."""
    settings = {"method": "relay", "workers": workers, "clients": sites, "rounds": rounds, "model.hidden": hidden}
    make_certificates(folder, sites)
    server = Server(folder, *arguments(settings), "--certs", str(folder / "certs"))
    pid, processes, began = server.process.pid, list[Any](), time.monotonic()
    ready, watched, own, files, first_s = status_of(pid, "VmRSS"), Watched(server.folder / "metrics.jsonl"), 0, 0, 0.0
    most, busy, since = ready, [0.0, 0.0], [began, began]
    try:
        for k in range(sites):
            join = [f"127.0.0.1:{server.port}", RECIPE, "--site", str(k), *of_model(settings)]
            join += ["--certs", str(folder / "certs" / "ca.crt"), "--key", str(folder / f"site-{k}.key")]
            process = context().Process(target=joined, args=(folder / f"site-{k}.txt", join), daemon=True)
            process.start()
            processes.append(process)
        while server.process.poll() is None:
            most, files = max(most, status_of(pid, "VmHWM")), max(files, open_files(pid))
            if watched.look() and not own:
                first_s = time.monotonic() - began
                own = sum(own_bytes(process.pid) for process in processes)
                busy[0], since[0] = processor_s(pid), time.monotonic()
            busy[1], since[1] = processor_s(pid) or busy[1], time.monotonic()
            time.sleep(0.1)
        if server.process.returncode:
            raise RuntimeError(server.said[-2000:])
        for process in processes:
            process.join(_PATIENCE_S)
    finally:
        server.kill()
        for process in processes:
            process.kill()
    lines = server.rounds()
    took = [b["time_s"] - a["time_s"] for a, b in pairwise(lines)]
    over = [t - max(line["local_s_of"]) for t, line in zip(took, lines[1:], strict=True)]
    missing = sum(len(line["refused"]) for line in lines)
    told = {
        "sites": sites, "in each round": workers, "rounds": len(lines),
        "seconds until the first round was over": round(first_s, 1),
        "seconds per round: median": round(statistics.median(took), 3), "worst": round(max(took), 3),
        "beside local steps: median": round(statistics.median(over), 3),
        "memory of all sites, MB": round(own / 1e6), "of one, MB": round(own / sites / 1e6, 1),
        "server's memory, MB": round(most / 1e6), "of this, since it was ready": round((most - ready) / 1e6),
        "server's part of a core": round((busy[1] - busy[0]) / (since[1] - since[0]), 2),
        "its open files": files, "refused": missing,
        "accuracy": json.loads((server.folder / "summary.json").read_text())["accuracy"],
    }  # fmt: skip
    print("\n".join(f"| {name} | {value} |" for name, value in told.items()), flush=True)
    problems = serial.problems_of(server.folder, settings) if not missing else [f"{missing} were refused"]
    problems += [f"site {k} did not end well" for k, process in enumerate(processes) if process.exitcode != 0]
    print("differs from the serial run: " + "; ".join(problems) if problems else "equal to the serial run, to the bit")
    return problems
