"""Elastic runs from the command line: ``skerry store``, and the part of one process in ``skerry train --elastic``."""

import re
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch

from skerry.experiments.cli.start import how_it_goes_on, work
from skerry.experiments.config import Config
from skerry.experiments.methods import for_elastic
from skerry.experiments.runs.execute import num_threads
from skerry.experiments.runs.folder import check_folder, is_written, saved_config, settings_of
from skerry.runtimes.elastic.elastic import Elastic, serve_store
from skerry.runtimes.runtime import Runtime
from skerry.training.agreement import in_words


@dataclass(frozen=True, kw_only=True)
class Members:
    """How many processes take part in a run, and where they meet."""

    minimum: int
    maximum: int
    store: str
    patience_s: float

    @classmethod
    def of_options(cls, elastic: str, store: str | None, patience_s: float) -> "Members":
        """Return what ``--elastic MIN:MAX``, ``--store`` and ``--patience`` say; ValueError for a mistake."""
        match = re.fullmatch(r"(\d+):(\d+)", elastic)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--elastic {elastic}: expected MIN:MAX processes, such as 2:8")
        if store is None:
            raise ValueError("--elastic: needs --store HOST:PORT, where `skerry store HOST:PORT` runs")
        host_and_port(f"--store {store}", store)
        if not patience_s > 0:
            raise ValueError(f"--patience {patience_s:g}: expected a positive number of seconds")
        return cls(minimum=int(match[1]), maximum=int(match[2]), store=store, patience_s=patience_s)


def host_and_port(given: str, address: str) -> tuple[str, int]:
    """Return both parts of ``address``; ValueError, beginning with what was ``given``, if it is none."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError(f"{given}: expected HOST:PORT, such as 10.0.0.1:29400")
    return host, int(port)


@click.command(name="store")
@click.argument("address", metavar="HOST:PORT")
def store_command(address: str) -> None:
    """Serve the store in which the processes of elastic runs meet, until ctrl-c.

    HOST is the name or address by which other machines reach this one. It holds no weights. For trusted networks only:
    whoever reaches the port can take part.
    """
    host, port = host_and_port(address, address)
    served = serve_store(port, host)
    click.echo(f"serving {host}:{served.port}; processes join with: skerry train RECIPE --elastic MIN:MAX "
               f"--store {host}:{served.port} --out FOLDER", err=True)  # fmt: skip
    signal.pause()


def join(config: Config, out: Path, members: Members, *, resume: bool, tensorboard: bool) -> bool:
    """Take part in a run; return whether this process wrote its folder in the end.

    Args:
        config: the run; the number of workers is that of processes.
        out: its folder, whose name is the run's. One that all processes share is best.
        members: how many, and where they meet.
        resume: go on with the run in ``out``.
        tensorboard: also write TensorBoard events.

    Raises:
        ValueError, OSError, TrainingFailed: see ``start``.
        TooFew, PeerLost: the run cannot go on, or has ended.
    """
    try:
        config = for_elastic(config)
    except ValueError as error:
        raise ValueError(f"--elastic: {error}") from None
    going_on = is_written(out)
    check_folder(out, config, resume=resume or going_on)
    if resume and not going_on and (out / "summary.json").exists() and saved_config(out).rounds == config.rounds:
        raise ValueError(f"{out}: the run is finished; give more --rounds to go on with it")
    threads = num_threads(config)
    config = config.change({"threads": threads})
    torch.set_num_threads(threads)
    last: list[Runtime] = []

    def training(runtime: Runtime) -> None:
        last[:] = [runtime]
        own = config.change({"workers": runtime.num_processes})
        click.echo(f"{runtime.num_processes} process(es) take part, this one as worker {runtime.rank}", err=True)
        work(runtime, own, out, resume, tensorboard, comes_and_goes=True)

    bounds = {"rounds": config.rounds, "minimum": members.minimum, "maximum": members.maximum}
    same = {**settings_of(config, per_worker=False), **bounds}
    name = out.resolve().name
    where = f"the run '{name}' (the last name in --out) at {members.store}"
    click.echo(f"joining {where}, which needs {members.minimum} process(es)", err=True)
    with (
        how_it_goes_on(out),
        Elastic(
            members.store,
            name,
            minimum=members.minimum,
            maximum=members.maximum,
            lease_s=config.timeout_s,
            patience_s=members.patience_s,
            settings=dict(in_words(same)),
            say=partial(click.echo, err=True),
        ) as elastic,
    ):
        elastic.run(training)
    wrote = last[0].rank == 0
    if not wrote:
        told = f"the run '{name}' is finished after round {config.rounds}; its folder was written by another process"
        click.echo(told, err=True)
    return wrote
