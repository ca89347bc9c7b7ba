"""Build what a config names, and run it in a folder."""

import inspect
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from skerry.choose import choose
from skerry.data.on_sites import OnSites
from skerry.experiments.config import Config
from skerry.experiments.methods import METHODS, build, takes
from skerry.experiments.recipes import Job, Recipe, find_recipe
from skerry.experiments.runs.folder import (
    RunFolder,
    check_folder,
    checkpoints_of,
    keep_config,
    saved_config,
    settings_of,
)
from skerry.runtimes.runtime import Runtime
from skerry.training.agreement import in_words
from skerry.training.callback import Callback
from skerry.training.evaluation.test_set import Test
from skerry.training.session import Session
from skerry.training.steps import schedules
from skerry.training.train import train
from skerry.training.worker import OptimizerFn

SCHEDULES = {"constant": schedules.constant, "cosine": schedules.cosine}


def configure(recipe: str, method: str, settings: Mapping[str, Any]) -> Config:
    """Return the config of ``recipe`` for ``method``, changed by ``settings`` (dotted name -> value).

    Raises:
        ValueError: an unknown name, a bad value, or a setting that the method does not take.

    Example:
        >>> configure("digits-mlp", "ist", {"partition.core": 0.1, "rounds": 5}).rounds
        5
    """
    return configured(find_recipe(recipe), method, settings)


def configured(built: Recipe, method: str, settings: Mapping[str, Any]) -> Config:
    """Return what ``configure`` does, for a recipe that has been made."""
    choose(method, METHODS, "method")
    if method not in built.methods:
        supported = ", ".join(built.methods)
        raise ValueError(
            f"method '{method}': recipe '{built.config.recipe}' has no settings for it, expected one of {supported}"
        )
    own = {"method": method, **built.methods[method]}
    if method == "single":
        own["workers"] = 1
        if settings.get("workers", 1) != 1:
            raise ValueError(f"workers={settings['workers']}: method 'single' has one worker, expected 1")
    if method == "ddp":
        own["runtime"] = "processes"
        if settings.get("runtime", "processes") != "processes":
            raise ValueError("runtime=serial: method 'ddp' averages gradients in every step, expected processes")
    config = built.config.change(own).change(settings)
    if takes(method, "width") and config.width is None:
        config = config.change({"width": 1 / config.workers})  # of the net, also if other workers go on with it
    for name in settings:
        if not takes(method, name):
            users = ", ".join(other for other in METHODS if takes(other, name)) or "no method"
            raise ValueError(f"{name}: method '{method}' does not take it, leave it out; taken by {users}")
    for group in ("model", "data"):
        known = getattr(built.config, group)
        for name in getattr(config, group):
            choose(name, known, f"setting of the {group}: {group}.")
    make_optimizer(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are given when it is built to be run
        build(config)
    return config


def make_optimizer(config: Config) -> OptimizerFn:
    """Return a function that creates the optimizer of the config for a subnet.

    Raises:
        ValueError: an unknown class of ``torch.optim``, or wrong arguments for it.
    """
    settings = dict(config.optimizer)
    known = {name for name, value in vars(torch.optim).items() if inspect.isclass(value)} - {"Optimizer"}
    name = choose(settings.pop("name", "SGD"), known, "optimizer")
    optimizer = getattr(torch.optim, name)
    defaults = {p.name: p.default for p in inspect.signature(optimizer).parameters.values() if p.name != "params"}
    for setting, value in settings.items():
        default = defaults[choose(setting, defaults, f"setting of optimizer {name}: ")]
        if isinstance(value, str) and isinstance(default, bool | int | float):
            like = "true or false" if isinstance(default, bool) else f"a number such as {default}"
            raise ValueError(f"optimizer.{setting}={value}: expected {like} ({name})")
    try:
        optimizer([torch.zeros(1, 1, requires_grad=True)], **settings).step()
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer {name} with {settings}: {error}") from error
    return lambda net: optimizer(net.parameters(), **settings)


def arguments_of(config: Config, job: Job) -> dict[str, Any]:
    """Return the arguments of a session that are the same wherever the workers of ``config`` run."""
    return {
        "plan": job.plan,
        "algorithm": build(config),
        "optimizer": make_optimizer(config),
        "num_rounds": config.rounds,
        "schedule": SCHEDULES[config.schedule],
        "seed": config.seed,
        "start": job.start,
        "device": config.device,
        **config.steps,
    }


def num_threads(config: Config) -> int:
    """Return the torch threads per process: as set (in the config or by OMP_NUM_THREADS), or its part of the cores."""
    if config.threads or "OMP_NUM_THREADS" in os.environ:
        return config.threads or torch.get_num_threads()
    return max(1, num_cores() // config.workers) if config.runtime == "processes" else num_cores()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    config: Config,
    folder: Path,
    runtime: Runtime,
    *,
    resume: bool,
    callbacks: Sequence[Callback] = (),
    heard: list[str] | None = None,
    comes_and_goes: bool = False,
) -> None:
    """Run ``config`` in ``folder``. Every process of ``runtime`` calls this; rank 0 writes the files.

    Args:
        config: the run.
        folder: its folder.
        runtime: where the workers run.
        resume: continue the run in ``folder``.
        callbacks: called on rank 0, after the folder's files are written.
        heard: texts of warnings, to be written with the next round.
        comes_and_goes: whether the processes of ``runtime`` do; several may use one folder then.

    Raises:
        ValueError, OSError: the settings, the data or the folder are wrong.
        TrainingFailed: the loss stayed non-finite for too many rounds; the last checkpoint is intact.
    """
    goes_on = runtime.goes_on
    resume = resume or goes_on
    runtime.agree(dict(in_words({**settings_of(config), "resume": resume})))
    job = find_recipe(config.recipe).build(config)
    data, priors = job.data, job.logit_adjustment
    if not runtime.mine(config.workers):  # sites have the data
        data, priors = OnSites(data.num_workers, next(iter(data.batches(0, 0, 1)))), None
    arguments: dict[str, Any] = {
        **arguments_of(config, job),
        "logit_adjustment": priors,
        "test": Test(*job.test, metrics=job.metrics, every=config.eval_every, batch_size=config.eval_batch_size),
        "runtime": runtime,
        "checkpoints": checkpoints_of(folder, config, resume=resume),
        "max_bad_rounds": config.max_bad_rounds,
        "privacy": config.private.asked_for,
    }
    if runtime.rank != 0:
        first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0  # the first process of another machine
        if first_here and not comes_and_goes:
            check_folder(folder, config, resume=resume and (folder / "config.json").exists())

        def begin_here(session: Session) -> None:
            runtime.total(torch.zeros(1))  # until the first process has written its own
            if first_here:
                keep_config(folder, config)

        here = [Callback(on_start=begin_here)]
        train(job.model, job.loss_fn, data, callbacks=here, **arguments).export(folder)
        return
    if goes_on:  # the folder of this process may have nothing of the run yet
        resume = (folder / "config.json").exists()
    before = saved_config(folder) if resume and not goes_on else config
    how = {"resume": resume, "take_over": goes_on, "same_shares": not comes_and_goes}
    with RunFolder(folder, config, job.signature, heard=heard, **how) as files:

        def begun(session: Session) -> None:
            runtime.total(torch.zeros(1))
            if resume and not goes_on:
                round = session.state.round
                told = f"{folder}: resuming after round {round} of {config.rounds}"
                if before.workers != config.workers:
                    told += f", with {config.workers} workers after {before.workers}; data and units are dealt anew"
                print(told, file=sys.stderr, flush=True)

        own = [files, Callback(on_start=begun)]
        result = train(job.model, job.loss_fn, data, callbacks=[*own, *callbacks], **arguments)
        result.export(folder)
        files.finish(result)
