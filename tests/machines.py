"""Processes as torchrun starts them on several machines, each with a folder and an environment of its own.

They are forked from a server that has imported everything once: imports would take most of the time of a test.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch

from skerry import launch
from skerry.experiments.cli import entry

Work = Sequence[str] | Path | Callable[[int], object]
"""The arguments of ``skerry``, a script, or a function of the rank."""

EXTRAS = ["click", "rich", "matplotlib", "jinja2", "sklearn", "PIL", "tensorboard", "wandb", "mlflow", "transformers"]
EXTRAS += ["torch_geometric", "pymetis", "flwr", "opacus"]
"""Packages that ``import skerry`` does not import."""
_NETWORK = 0x40000000  # CLONE_NEWNET


def start_server() -> None:
    """Start the server; it imports while other tests run."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["preloaded"])
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path)):
        forkserver.ensure_running()


def start_on_machines(
    folder: Path,
    *work: Work,
    namespaces: Sequence[Path] = (),
    address: str = "127.0.0.1",
    environments: Sequence[Mapping[str, str]] = (),
    more: Sequence[Mapping[str, str]] = (),
) -> list[ForkServerProcess]:
    """Start process k in ``folder``/k; it writes what it says to a file ``said`` there.

    Args:
        folder: of all machines.
        work: of each process.
        namespaces: network namespaces of the processes, all of which reach ``address``, that of the first.
        address: of the first process.
        environments: what the launcher sets for each process, if not what torchrun does.
        more: what else is set for each process.
    """
    context = multiprocessing.get_context("forkserver")
    ready = context.Process(target=os.getpid)
    ready.start()
    ready.join()  # the server has imported everything
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank, own in enumerate(work):
        group = {"RANK": rank, "WORLD_SIZE": len(work), "MASTER_ADDR": address, "MASTER_PORT": port}
        group = environments[rank] if environments else {name: str(value) for name, value in group.items()}
        group = {**group, **(more[rank] if more else {})}
        inside = namespaces[rank] if namespaces else None
        machines.append(context.Process(target=_machine, args=(group, folder / f"{rank}", own, inside)))
        machines[-1].start()
    return machines


def run_on_machines(folder: Path, *work: Work, **where: Any) -> tuple[list[int | None], list[str]]:
    """Start processes and wait for them; return all exit codes (None: none in two minutes), and what each said."""
    machines = start_on_machines(folder, *work, **where)
    for machine in machines:
        machine.join(120)
    codes = [machine.exitcode for machine in machines]
    for machine in machines:
        machine.kill()
    return codes, [(folder / f"{rank}" / "said").read_text() for rank in range(len(work))]


def run_bare(folder: Path, code: str) -> tuple[int | None, str]:
    """Run ``code`` as a new Python would; of what it may import only torch is there already. Return code and output."""
    codes, said = run_on_machines(folder, partial(_bare, code))
    return codes[0], said[0]


def _bare(code: str, rank: int) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"skerry", *EXTRAS}]:
        del sys.modules[name]
    exec(compile(code, "code", "exec"), {"__name__": "__main__"})


def _machine(group: Mapping[str, str], folder: Path, work: Work, namespace: Path | None) -> None:
    """The main function of a process."""
    os.environ.update(group, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    sys.modules[launch.__module__]._START = "fork"  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    with Path("said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    if namespace is not None:
        with namespace.open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), _NETWORK) == 0
    if callable(work):
        work(int(os.environ["RANK"]))
    elif isinstance(work, Path):
        _run_script(work)
    else:
        sys.argv = ["skerry", *work]
        entry()


def _run_script(path: Path) -> NoReturn:
    """Run a script and end this process as Python would: what is registered with ``atexit`` runs, too."""
    code: int | str | None = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        sys.last_value = error
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
