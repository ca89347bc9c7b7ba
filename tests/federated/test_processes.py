"""Real processes, TLS and keys, made by the commands of docs/federated.md: killed and resumed, to serial's bits."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RUN = [str(ROOT / "examples" / "own_recipe.py:spirals"), "--method", "relay", "--workers", "3", "--rounds", "12"]
RUN += ["--set", "checkpoint_every_s=0"]
_PATIENCE_S = 600.0


def shell_blocks() -> list[str]:
    page = (ROOT / "docs" / "federated.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "openssl" in block or "ssh-keygen" in block]


class Started:
    """A ``skerry`` command in a process of its own; what it says is kept."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._said = folder / f"said-{time.monotonic_ns()}"
        with self._said.open("w") as said:
            command = [sys.executable, "-m", "skerry", *arguments]
            self.process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def until(self, pattern: str) -> Any:
        """Wait until it has said what matches."""
        end = time.monotonic() + _PATIENCE_S
        while not (found := re.search(pattern, self.said)):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.1)
        return found

    def end(self) -> None:
        assert self.process.wait(_PATIENCE_S) == 0, self.said


@pytest.fixture
def certified(tmp_path) -> Path:
    """A folder with what the page's commands make: certs/ and three keys."""
    authority, key = shell_blocks()
    subprocess.run(
        ["bash", "-ec", authority.replace("DNS:train.example.org", "IP:127.0.0.1")], cwd=tmp_path, check=True
    )
    for k in range(4):  # the last one is of nobody
        subprocess.run(["bash", "-ec", key.replace("site-0", f"site-{k}")], cwd=tmp_path, check=True)
        if k < 3:
            (tmp_path / f"site-{k}.key.pub").rename(tmp_path / "certs" / "sites" / f"site-{k}.key.pub")
    return tmp_path


@pytest.mark.slow
def test_sites_with_keys_a_site_and_the_server_killed(certified):
    started = []

    def start(*arguments: str) -> Started:
        started.append(Started(certified, *arguments))
        return started[-1]

    def site(k: int, *more: str) -> Started:
        secrets = ["--certs", "certs/ca.crt", "--key", f"site-{k}.key"]
        return start("join", address, RUN[0], "--site", str(k), *secrets, *more)

    try:
        serve = ("serve", *RUN, "--certs", "certs", "--out", "run")
        server = start(*serve, "--listen", "127.0.0.1:0")
        address = server.until(r"at (127.0.0.1:\d+);")[1]
        stranger = site(3)
        stranger.until("does not take this site")
        plain = start("join", address, RUN[0])
        plain.until("cannot be reached|does not take this site")
        sites = [site(k) for k in range(3)]
        metrics = certified / "run" / "metrics.jsonl"
        end = time.monotonic() + _PATIENCE_S
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert server.process.poll() is None, server.said
            assert time.monotonic() < end, server.said
            time.sleep(0.02)
        server.process.kill()
        server.process.wait()
        assert not (certified / "run" / "summary.json").exists()
        server = start(*serve, "--listen", address, "--resume")
        server.end()
        for each in sites:
            each.end()
        assert "joined" not in stranger.said + plain.said
    finally:
        for each in started:
            each.process.kill()
            each.process.wait()
    serial = Started(certified, "train", *RUN, "--out", "serial")
    serial.end()
    ours, meant = (load_file(certified / name / "model.safetensors") for name in ("run", "serial"))
    assert ours.keys() == meant.keys()
    assert all((ours[name] == meant[name]).all() for name in meant)
