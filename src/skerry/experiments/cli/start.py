"""Start a run where its config says: in this process, in new processes, or as the worker that torchrun made us."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from skerry.callbacks import Callback, Progress, TensorBoard
from skerry.experiments.config import Config
from skerry.experiments.runs.execute import num_cores, num_threads, run
from skerry.experiments.runs.folder import check_folder, how_to_go_on
from skerry.files.atomic import WriteFailed
from skerry.model.device import chosen_device
from skerry.runtimes.distributed.launch import WorkerDied, launch
from skerry.runtimes.distributed.meeting import PeerLost
from skerry.runtimes.distributed.processes import Processes
from skerry.runtimes.elastic.membership import TooFew
from skerry.runtimes.runtime import Runtime
from skerry.runtimes.serial import Serial
from skerry.training.phases.exchange_phase import TrainingFailed

EXPECTED = (ValueError, OSError, TrainingFailed, PeerLost, WorkerDied, TooFew)
"""Errors that are reported in one line, without a traceback."""


def start(config: Config, out: Path, *, resume: bool, tensorboard: bool = False) -> None:
    """Run ``config`` in the folder ``out`` and show its progress.

    Args:
        config: the run.
        out: its folder.
        resume: continue the run in ``out``.
        tensorboard: also write TensorBoard events.

    Raises:
        ValueError, OSError: the settings, the data or the folder are wrong.
        TrainingFailed: the loss stayed non-finite for too many rounds.
        WorkerDied, PeerLost: a process ended before the run was done.
    """
    with how_it_goes_on(out):
        _start(config, out, resume, tensorboard)


@contextmanager
def how_it_goes_on(out: Path) -> Iterator[None]:
    """Add a note to what ends the run in ``out`` early: what there is of it, and how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, WriteFailed, WorkerDied, TooFew) as error:
        told = how_to_go_on(out)
        if not isinstance(error, WorkerDied) or told.startswith("--resume"):
            error.add_note(f"({told})")
        raise


def _start(config: Config, out: Path, resume: bool, tensorboard: bool) -> None:
    chosen_device(config.device)  # before processes are started
    under_torchrun = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    if under_torchrun:
        config = config.change({"runtime": "processes"})
    threads = num_threads(config)
    config = config.change({"threads": threads})  # saved, so that a resumed run adds up in the same order
    torch.set_num_threads(threads)
    if under_torchrun:
        with Processes.join(config.timeout_s, wire=config.wire) as runtime:
            work(runtime, config, out, resume, tensorboard)
        return
    check_folder(out, config, resume=resume)
    if config.runtime == "serial":
        click.echo(f"{config.workers} worker(s) in this process, {threads} torch thread(s)", err=True)
        work(Serial(), config, out, resume, tensorboard)
        return
    sizes = f"{config.workers} processes with {threads} torch thread(s) each on {num_cores()} cores"
    click.echo(f"starting {sizes}; this takes some seconds", err=True)
    launch(
        work, config.workers, config, out, resume, tensorboard,
        threads=threads, timeout_s=config.timeout_s, wire=config.wire, expected=EXPECTED,
    )  # fmt: skip


def work(
    runtime: Runtime, config: Config, out: Path, resume: bool, tensorboard: bool, *, comes_and_goes: bool = False
) -> None:
    """The part of one process in a run; rank 0 shows the progress, and the warnings."""
    if runtime.rank != 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first process says the same
            run(config, out, runtime, resume=resume, comes_and_goes=comes_and_goes)
        return
    if runtime.num_processes > 1 and not comes_and_goes:
        click.echo(f"all {runtime.num_processes} processes have joined", err=True)
    title = f"{config.recipe} {config.method}"
    with warnings_in_one_line(f"{title}: ") as heard:
        callbacks: list[Callback] = [Progress(title)]
        if tensorboard:
            callbacks.append(TensorBoard(out / "tensorboard"))
        run(config, out, runtime, resume=resume, callbacks=callbacks, heard=heard, comes_and_goes=comes_and_goes)


@contextmanager
def warnings_in_one_line(title: str = "") -> Iterator[list[str]]:
    """Print each warning as one line, without the place in the code; yield a list that gets their texts."""
    heard: list[str] = []

    def show(message: Warning | str, *place: object, **more: object) -> None:
        heard.append(" ".join(str(message).split()))
        click.echo(f"{title}warning: {heard[-1]}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield heard
