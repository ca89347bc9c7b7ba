"""What a round costs beside local steps: Skerry's methods on sites, and stock Flower's FedAvg."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import serial
import torch
from processes import RECIPE, Server, Started, Watched, arguments, context, environment, joined, of_model, status_of
from road import Road
from safetensors.torch import load_file, save_file
from serial import Settings

import skerry
from skerry.experiments.runs.execute import arguments_of

COLUMNS = (
    "method", "local steps, s", "overhead, s: median", "worst", "MB a round and site: down", "up",
    "server's memory, MB", "accuracy",
)  # fmt: skip
HELP = """Each method trains the same number of rounds and steps, on the same samples. Local steps: those of the slowest
site. Overhead: a round's time less these, without the first round. MB: all that goes over the server's port, counted,
with heads and looks for messages. Memory: the server's most (Flower: SuperLink and ServerApp) less what it had once it
was ready and before it had a model."""
_PATIENCE_S = 600.0


METHODS: dict[str, Settings] = {
    "relay": {"method": "relay"},
    "ist": {"method": "ist"},
    "heterofl": {"method": "heterofl"},
    "narrow, width 1/n": {"method": "narrow"},
    "narrow, width 1: FedAvg": {"method": "narrow", "width": 1.0},
}
RIVALS = {
    "Flower's FedAvg, width 1": METHODS["narrow, width 1: FedAvg"],
    "Flower's FedAvg, width 1/n": METHODS["narrow, width 1/n"],
}


class Counter:
    """Bytes on the road at the end of each round."""

    def __init__(self, road: Road, metrics: Path) -> None:
        self._road, self._watched = road, Watched(metrics)
        self.at: list[tuple[int, int]] = []

    def look(self) -> int:
        """Note the bytes if a round has ended; return the number of rounds done."""
        num = self._watched.look()
        if num > len(self.at):
            self.at += [(self._road.bytes_down, self._road.bytes_up)] * (num - len(self.at))
        return num

    def per_round(self, sites: int) -> list[float]:
        """Return MB down and up per round and site, without the first round, in which sites join."""
        first, last = self.at[0], self.at[-1]
        return [(b - a) / (len(self.at) - 1) / sites / 1e6 for a, b in zip(first, last, strict=True)]


def skerry_row(folder: Path, name: str, sites: int, given: Settings) -> dict[str, Any]:
    """Run a method of ours on sites; return its row."""
    server = Server(folder, *arguments({**METHODS[name], **given}), "--insecure")
    ready = status_of(server.process.pid, "VmRSS")
    road, processes, most = Road(server.port), list[Any](), 0
    try:
        counter = Counter(road, server.folder / "metrics.jsonl")
        for k in range(sites):
            join = [f"127.0.0.1:{road.port}", RECIPE, "--site", str(k), *of_model(given)]
            process = context().Process(target=joined, args=(folder / f"site-{k}.txt", join), daemon=True)
            process.start()
            processes.append(process)
        while server.process.poll() is None:
            counter.look()
            most = max(most, status_of(server.process.pid, "VmHWM"))
            time.sleep(0.005)
        if server.process.returncode:
            raise RuntimeError(server.said[-2000:])
        counter.look()
        for process in processes:
            process.join(_PATIENCE_S)
    finally:
        server.kill()
        for process in processes:
            process.kill()
        road.close()
    lines = server.rounds()
    local = [max(line["local_s_of"]) for line in lines]
    beside = [line["time_s"] - line["evaluate_s"] - line["checkpoint_s"] for line in lines]
    over = [b - a - own for (a, b), own in zip(pairwise(beside), local[1:], strict=True)]
    accuracy = json.loads((server.folder / "summary.json").read_text())["accuracy"]
    return _row(name, local[1:], over, counter.per_round(sites), most - ready, accuracy)


def flower_row(folder: Path, name: str, sites: int, given: Settings) -> dict[str, Any]:
    """Run Flower's FedAvg, by its own commands, on the samples of our ``narrow`` of that width; return its row."""
    config = _written_for(folder, sites, given, RIVALS[name])
    with _flower(folder, sites) as (run, superlink, road):
        ready = status_of(superlink.process.pid, "VmRSS")
        counter = Counter(road, folder / "metrics.jsonl")
        values = {"sites": sites, "num-server-rounds": config.rounds, "local-steps": config.local_steps}
        values |= {"lr": config.optimizer["lr"], "folder": f'"{folder}"'}
        run(" ".join(f"{key}={value}" for key, value in values.items()))
        end, most = time.monotonic() + _PATIENCE_S, 0
        while not (folder / "memory.json").exists():
            counter.look()
            most = max(most, status_of(superlink.process.pid, "VmHWM"))
            if time.monotonic() > end:
                raise RuntimeError("Flower's run has not ended: " + superlink.said[-2000:])
            time.sleep(0.005)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    local = [max(line["local_s"]) for line in lines]
    over = [b["t"] - a["t"] - own for (a, b), own in zip(pairwise(lines), local[1:], strict=True)]
    growth = most - ready + json.loads((folder / "memory.json").read_text())["growth"]
    ours = serial.trained({**RIVALS[name], **given}).model.state_dict()
    theirs = load_file(folder / "model.safetensors")
    apart = max(float((theirs[n] - t).abs().max()) for n, t in ours.items())
    row = _row(name, local[1:], over, counter.per_round(sites), growth, _accuracy(theirs))
    begun = statistics.median(max(line["before_s"]) for line in lines[1:])
    return row | {"apart": apart, "begun_s": begun}


def _row(
    name: str, local: list[float], over: list[float], num_mb: list[float], growth: float, accuracy: float
) -> dict[str, Any]:
    told = (name, statistics.median(local), statistics.median(over), max(over), *num_mb, growth / 1e6, accuracy)
    return dict(zip(COLUMNS, told, strict=True))


def _written_for(folder: Path, sites: int, given: Settings, method: Settings) -> Any:
    """Write the weights to begin with and the samples of each site and round, for Flower's app; return the config."""
    folder.mkdir(parents=True, exist_ok=True)
    config, job = serial.built({**method, **given})
    session = skerry.Session(job.model, loss_fn=job.loss_fn, **arguments_of(config, job))
    start = {name: tensor.clone() for name, tensor in session.setup.store.shards().items()}
    save_file(start, folder / "start.safetensors")
    for k in range(sites):
        for round in range(config.rounds):
            batches = list(job.data.batches(k, round * config.local_steps, config.local_steps))
            x, y = (torch.stack([batch[i] for batch in batches]) for i in (0, 1))
            save_file({"x": x, "y": y}, folder / f"site-{k}-{round}.safetensors")
    return config


def _accuracy(tensors: dict[str, torch.Tensor]) -> float:
    import wide_net

    config = wide_net.wide().config
    made = wide_net.net(len(tensors["0.bias"]))
    made.load_state_dict(tensors)
    x, y = wide_net.task(config).test
    with torch.no_grad():
        return float((made(x).argmax(1) == y).float().mean())


@contextmanager
def _flower(folder: Path, sites: int) -> Iterator[tuple[Callable[[str], None], Started, Road]]:
    """Yield a function that starts a run, the SuperLink, and the road that SuperNodes take to it."""
    from socket import create_server

    bin_, started = Path(sys.executable).parent, list[Started]()
    env = environment() | {"FLWR_HOME": str(folder), "PATH": os.pathsep.join([str(bin_), os.environ["PATH"]])}

    def free_port() -> int:
        with create_server(("127.0.0.1", 0)) as listening:
            return int(listening.getsockname()[1])

    def start(name: str, *arguments: str) -> Started:
        said = folder / f"said-{len(started)}.txt"
        started.append(Started(said, [bin_ / name, "--insecure", *arguments], env=env))
        return started[-1]

    port = free_port()
    (folder / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    road = Road(port)
    try:
        superlink = start(
            "flower-superlink", "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)
        )
        for k in range(sites):
            more = ["--superlink", f"127.0.0.1:{road.port}", "--port", str(free_port())]
            start("flower-supernode", *more, "--node-config", f"site={k}")

        def run(config: str) -> None:
            app = Path(__file__).parent / "fedavg_app"
            command, end = [bin_ / "flwr", "run", app, "here", "--run-config", config], time.monotonic() + _PATIENCE_S
            while (done := subprocess.run(command, env=env, capture_output=True, text=True)).returncode:
                if time.monotonic() > end or any(each.process.poll() is not None for each in started):
                    raise RuntimeError(done.stdout + done.stderr + superlink.said[-2000:])

        yield run, superlink, road
    finally:
        for each in started:
            each.process.terminate()
        for each in started:
            each.process.wait(_PATIENCE_S)
        road.close()


def main(folder: Path, names: list[str], given: Settings, sites: int) -> list[str]:
    """Print a row for each method; return what is wrong."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    notes = []
    for number, name in enumerate(names):
        row = (skerry_row if name in METHODS else flower_row)(folder / f"{number}", name, sites, given)
        print(
            "| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else v for v in (row[c] for c in COLUMNS)) + " |",
            flush=True,
        )
        if "apart" in row:
            notes.append(
                f"{name}: weights differ from our serial run's by at most {row['apart']:.1e}; a site's process is "
                f"{row['begun_s']:.1f} s old when its local steps begin"
            )
    print("", *notes, sep="\n")
    return [note for note in notes if "nan" in note]
