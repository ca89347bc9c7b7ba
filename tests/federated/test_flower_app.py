"""examples/sites with stock Flower, as docs/federated.md has it: to the bits of the serial runtime."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from skerry import train

ROOT = Path(__file__).parents[2]
APP, BIN = ROOT / "examples" / "sites", Path(sys.executable).parent
CONFIG: dict[str, Any] = {"sites": 2, "num-server-rounds": 2, "local-steps": 3, "lr": 0.1, "deadline-s": 300.0}
_PATIENCE_S = 600.0


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


class OfAll:
    """The data of all sites."""

    num_workers = CONFIG["sites"]

    def __init__(self, shards: Any) -> None:
        self._shards = [shards(k) for k in range(self.num_workers)]

    def batches(self, worker: int, first_step: int, num_steps: int) -> Any:
        return self._shards[worker].batches(0, first_step, num_steps)

    def sample(self, worker: int, num: int) -> Any:
        return self._shards[worker].sample(0, num)


@pytest.mark.slow
def test_the_app_of_the_page_runs_with_stock_flower(tmp_path, monkeypatch):
    port, out = free_port(), tmp_path / "model.pt"
    (tmp_path / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
    env["PATH"] = os.pathsep.join([str(BIN), env["PATH"]])  # Flower starts commands of its own
    started = []

    def start(name: str, *arguments: str) -> None:
        with (tmp_path / f"said-{len(started)}").open("w") as said:
            command = [BIN / name, "--insecure", *arguments]
            started.append(subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT))

    def said() -> str:
        return "\n".join(each.read_text() for each in sorted(tmp_path.glob("said-*")))

    try:
        start("flower-superlink", "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", port)
        for k in range(CONFIG["sites"]):
            more = ["--port", free_port(), "--node-config", f"site={k}"]
            start("flower-supernode", "--superlink", f"127.0.0.1:{port}", *more)
        config = " ".join(f"{name}={value}" for name, value in {**CONFIG, "out": f'"{out}"'}.items())
        end, code = time.monotonic() + _PATIENCE_S, 1
        while code:  # until the SuperLink serves
            done = subprocess.run(
                [BIN / "flwr", "run", APP, "here", "--run-config", config], env=env, capture_output=True
            )
            code = done.returncode
            assert time.monotonic() < end, done.stdout.decode() + said()
            assert all(each.poll() is None for each in started), said()
        while not (out.exists() and "Finished task" in said()):
            assert time.monotonic() < end, said()
            time.sleep(0.5)
    finally:
        for each in started:
            each.terminate()
        for each in started:
            each.wait(_PATIENCE_S)
    monkeypatch.syspath_prepend(str(APP))
    from three_sites.task import settings, shards

    meant = train(loss_fn=F.cross_entropy, data=OfAll(shards), **settings(CONFIG)).model.state_dict()
    ours = torch.load(out)
    assert ours.keys() == meant.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in meant.items())
