"""Elastic runs from the command line: ``skerry store``, and the part of one process in ``skerry train --elastic``."""

import math
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch

from skerry.experiments import planner
from skerry.experiments.cli.start import how_it_goes_on, work
from skerry.experiments.config import Config
from skerry.experiments.methods import METHODS, for_elastic, takes
from skerry.experiments.runs.execute import num_threads
from skerry.experiments.runs.folder import check_folder, is_written, saved_config, settings_of
from skerry.model.device import chosen_device
from skerry.runtimes.elastic.elastic import Elastic, serve_store
from skerry.runtimes.elastic.generation import Generation
from skerry.runtimes.runtime import Runtime
from skerry.training.agreement import in_words


@dataclass(frozen=True, kw_only=True)
class Members:
    """How many processes take part in a run, and where they meet."""

    minimum: int
    maximum: int
    store: str
    patience_s: float
    late_s: float | None = None
    by_speed: bool = False

    @classmethod
    def of_options(
        cls, elastic: str, store: str | None, patience_s: float, late_s: float | None, *, by_speed: bool = False
    ) -> "Members":
        """Return what ``--elastic MIN:MAX`` and the options that go with it say; ValueError for a mistake."""
        match = re.fullmatch(r"(\d+):(\d+)", elastic)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--elastic {elastic}: expected MIN:MAX processes, such as 2:8")
        if store is None:
            raise ValueError("--elastic: needs --store HOST:PORT, where `skerry store HOST:PORT` runs")
        host_and_port(f"--store {store}", store)
        for option, seconds in (("patience", patience_s), ("late", late_s)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"--{option} {seconds:g}: expected a positive number of seconds")
        return cls(
            minimum=int(match[1]),
            maximum=int(match[2]),
            store=store,
            patience_s=patience_s,
            late_s=late_s,
            by_speed=by_speed,
        )


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


def free_memory() -> float:
    """Return the bytes that this process may still use, as far as Linux tells; infinite if it does not."""
    free = [math.inf]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            group = Path("/sys/fs/cgroup", kind, path.lstrip("/"))
            with suppress(OSError, KeyError, ValueError):  # no limit is the word max
                most, used = (int((group / name).read_text()) for name in names[kind])
                stat = dict(each.split() for each in (group / "memory.stat").read_text().splitlines())
                free.append(most - used + int(stat["inactive_file"]))  # the kernel takes these pages back
    return min(free)


def check_memory(config: Config, members: Members) -> None:
    """Tell if this process has too little memory for its share with few processes; it also builds all there is.

    So mistakes come up before it joins, and others do not wait while modules are loaded. On a GPU nothing is told: a
    share is in its memory then, not in the machine's.

    Raises:
        ValueError: its share does not fit, however many take part.
    """
    about = planner.subject(config.recipe)
    free = free_memory() if chosen_device(config.device).type == "cpu" else math.inf
    for num in sorted({members.minimum, members.maximum}, reverse=True):
        need = planner.forecast(about, config.change({"workers": num}), elastic=True).memory.peak
        if need > free:
            told = f"with {num} process(es) a share needs {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free here"
            if num == members.maximum:
                raise ValueError(f"--elastic: {told}; give a greater maximum, a smaller batch or a narrower model")
            click.echo(f"{told}: this process may end then", err=True)


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
    if members.by_speed and not takes(config.method, "partition.capacities"):
        fit = ", ".join(name for name in METHODS if takes(name, "partition.capacities"))
        raise ValueError(f"--by-speed: method '{config.method}' deals equal shares, expected one of {fit}")
    going_on = is_written(out)
    check_folder(out, config, resume=resume or going_on, same_shares=not members.by_speed)
    if resume and not going_on and (out / "summary.json").exists() and saved_config(out).rounds == config.rounds:
        raise ValueError(f"{out}: the run is finished; give more --rounds to go on with it")
    threads = num_threads(config)
    config = config.change({"threads": threads})
    torch.set_num_threads(threads)
    check_memory(config, members)
    if members.late_s is not None and members.maximum < 3:
        click.echo("--late has no effect: it needs 3 or more processes", err=True)
    last: list[Runtime] = []

    def training(runtime: Generation) -> None:
        last[:] = [runtime]
        own = config.change({"workers": runtime.num_processes})
        if members.by_speed:
            own = own.change({"partition.capacities": list(runtime.capacities)})
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
            late_s=members.late_s,
            by_speed=members.by_speed,
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
