"""Servers and sites in processes of their own: ``skerry serve`` and ``skerry join``, and what they use (Linux)."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

RECIPE = f"{Path(__file__).parent / 'wide_net.py'}:wide"
_PATIENCE_S = 600.0
_COMMANDS = """
mkdir -p certs/sites
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 \
    -keyout certs/ca.key -out certs/ca.crt -subj '/CN=authority'
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -keyout certs/server.key -out certs/server.csr -subj '/CN=server'
printf 'subjectAltName=IP:127.0.0.1' > certs/san.txt
openssl x509 -req -in certs/server.csr -CA certs/ca.crt -CAkey certs/ca.key -CAcreateserial \
    -days 9 -extfile certs/san.txt -out certs/server.pem
"""


def make_certificates(folder: Path, num: int) -> None:
    """Write what docs/federated.md says: ``certs`` of a server, and keys of ``num`` sites and of a stranger."""
    folder.mkdir(parents=True, exist_ok=True)
    key = "ssh-keygen -q -t ecdsa -b 384 -N '' -f"
    keys = "\n".join(f"{key} site-{k}.key; mv site-{k}.key.pub certs/sites" for k in range(num))
    subprocess.run(
        ["bash", "-ec", f"{_COMMANDS}\n{keys}\n{key} stranger.key"], cwd=folder, check=True, capture_output=True
    )


def environment() -> dict[str, str]:
    """Return what processes of a bench run in: one thread each, nothing reported to Flower."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1] / "src"), str(here), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return settings (and ``method``) as arguments of ``skerry serve`` and ``train``."""
    sets = [each for name, value in settings.items() if name != "method" for each in ("--set", f"{name}={value}")]
    return ["--method", settings["method"], *sets]


def of_model(settings: Mapping[str, Any]) -> list[str]:
    """Return those that a site sets itself."""
    return [each for n, value in settings.items() if n.startswith("model.") for each in ("--set", f"{n}={value}")]


class Started:
    """A command in a process of its own; what it says is kept in ``said``."""

    def __init__(self, said: Path, command: Sequence[str | Path], **more: Any) -> None:
        self._said = said
        with said.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **more)

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._said.read_text(errors="replace")

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until it has said what matches.

        Raises:
            RuntimeError: it ended, or ten minutes have passed.
        """
        end = time.monotonic() + _PATIENCE_S
        while not (found := re.search(pattern, self.said)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{pattern!r} was not said: {self.said[-2000:]}")
            time.sleep(0.05)
        return found

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Server(Started):
    """``skerry serve`` in ``folder``, whose run is in ``folder/run``.

    Attributes:
        port: where it serves.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "skerry", "serve", RECIPE, "--listen", "127.0.0.1:0", "--out", "run"]
        super().__init__(folder / "server.txt", [*command, *arguments], cwd=folder, env=environment())
        self.folder = folder / "run"
        self.port = int(self.until(r"at 127\.0\.0\.1:(\d+);")[1])

    def rounds(self) -> list[dict[str, Any]]:
        """Return the lines of the record so far."""
        with suppress(FileNotFoundError):
            text = (self.folder / "metrics.jsonl").read_text()
            return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return []


class Watched:
    """How many rounds a run has done: only new lines of its record are read."""

    def __init__(self, metrics: Path) -> None:
        self._metrics, self.num, self._read = metrics, 0, 0

    def look(self) -> int:
        """Return the number of rounds done."""
        with suppress(FileNotFoundError), self._metrics.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            self._read += len(new)
            self.num += new.count(b"\n")
        return self.num


def context() -> Any:
    """Return how processes of sites are started: as copies of one that has imported everything."""
    os.environ.update(environment())
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["warm"])
    return found


def joined(said: Path, arguments: Sequence[str], prepare: Callable[..., None] | None = None, *more: Any) -> None:
    """Be a site: ``skerry join`` with these arguments, in this process.

    Args:
        said: the file for what it says; it grows, if the site is started again.
        arguments: of the command.
        prepare: called before, with ``more``.
    """
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from skerry.experiments.cli import call

    if prepare is not None:
        prepare(*more)
    code, told = call(["join", *arguments])
    print(told, file=sys.stderr, flush=True)
    os._exit(code)


def status_of(pid: int, name: str) -> int:
    """Return a figure of /proc/PID/status in bytes: ``VmRSS``, or ``VmHWM``, the most so far; 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def own_bytes(pid: int) -> int:
    """Return the memory that is a process's part of what it shares with others (PSS)."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) * 1024  # type: ignore[index]
    return 0


def processor_s(pid: int) -> float:
    """Return the seconds of a core that a process has taken."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def open_files(pid: int) -> int:
    """Return the number of open files of a process."""
    with suppress(FileNotFoundError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0
