"""Build what a config names, and run it in a folder or export its model."""

import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from skerry.checkpoint.export import SHARD_BYTES, export
from skerry.choose import choose
from skerry.experiments.config import Config
from skerry.experiments.methods import METHODS, build, takes
from skerry.experiments.recipes import RECIPES
from skerry.experiments.runs.folder import RunFolder, checkpoints_of, keep_config, saved_config
from skerry.merge.calibrate import estimate_batch_norm_
from skerry.model.inputs import call
from skerry.model.tensors import named_tensors, skeleton
from skerry.runtimes.runtime import Runtime
from skerry.runtimes.serial import Serial
from skerry.runtimes.streamed import Streamed
from skerry.training import schedules
from skerry.training.evaluation.test_set import Test
from skerry.training.session import Session
from skerry.training.setup import net_to_train
from skerry.training.train import OnRound, calibration_inputs, train
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
    built = RECIPES[choose(recipe, RECIPES, "recipe")]()
    choose(method, METHODS, "method")
    if method not in built.methods:
        supported = ", ".join(built.methods)
        raise ValueError(f"method '{method}': recipe '{recipe}' has no settings for it, expected one of {supported}")
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
    for name in settings:
        if not takes(method, name):
            users = ", ".join(other for other in METHODS if takes(other, name)) or "no method"
            raise ValueError(f"{name}: method '{method}' does not take it, leave it out; taken by {users}")
    for group in ("model", "data"):
        known = getattr(built.config, group)
        for name in getattr(config, group):
            choose(name, known, f"setting of the {group}: {group}.")
    make_optimizer(config)
    build(config)
    return config


def make_optimizer(config: Config) -> OptimizerFn:
    """Return a function that creates the optimizer of the config for given parameters.

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
    return lambda parameters: optimizer(parameters, **settings)


def num_threads(config: Config) -> int:
    """Return the torch threads per process: as set (in the config or by OMP_NUM_THREADS), or its part of the cores."""
    if config.threads or "OMP_NUM_THREADS" in os.environ:
        return config.threads or torch.get_num_threads()
    return max(1, num_cores() // config.workers) if config.runtime == "processes" else num_cores()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def export_run(folder: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the calibrated full model of the last checkpoint in ``folder`` to ``out``.

    Runs in one process, which holds one tensor (and the vectors) of the full model at a time.

    Args:
        folder: the run.
        out: receives safetensors files, with an index if there are several.
        shard_bytes: size limit of a file; a larger tensor gets its own.

    Returns:
        The round of the checkpoint.

    Raises:
        ValueError: there is no run or no checkpoint in ``folder``.
    """
    config = saved_config(folder)
    job = RECIPES[config.recipe]().build(config)
    algorithm = build(config)
    model, plan = net_to_train(job.model, job.plan, algorithm, config.seed)
    checkpoints = checkpoints_of(folder, config, resume=True)
    checkpoint = checkpoints.latest(algorithm.name, plan, named_tensors(model), Serial())
    if checkpoint is None:
        raise ValueError(f"{folder}: no checkpoint to export; resume the run until it writes one")
    share = algorithm.partition.share(plan.axes, max(0, checkpoint.state.round - 1))
    full = Streamed(
        skeleton(model), plan, share, lambda names, *, only_first: {name: checkpoint.read(name) for name in names}
    )
    if bool((share < 1).any()):
        inputs = calibration_inputs(job.data, range(algorithm.partition.num_workers))
        estimate_batch_norm_(full.module, lambda m: [call(m, x) for x in inputs])
    export(full, out, shard_bytes=shard_bytes)
    return checkpoint.state.round


def run(
    config: Config,
    folder: Path,
    runtime: Runtime,
    *,
    resume: bool,
    on_round: OnRound | None = None,
    heard: list[str] | None = None,
) -> None:
    """Run ``config`` in ``folder``. Every process of ``runtime`` calls this; rank 0 writes the files.

    Args:
        config: the run.
        folder: its folder.
        runtime: where the workers run.
        resume: continue the run in ``folder``.
        on_round: called on rank 0 after each round, with its ``Record`` and ``State``.
        heard: texts of warnings, to be written with the next round.

    Raises:
        ValueError, OSError: the settings, the data or the folder are wrong.
        TrainingFailed: the loss stayed non-finite for too many rounds; the last checkpoint is intact.
    """
    job = RECIPES[config.recipe]().build(config)
    arguments: dict[str, Any] = {
        "plan": job.plan,
        "algorithm": build(config),
        "optimizer": make_optimizer(config),
        "num_rounds": config.rounds,
        "schedule": SCHEDULES[config.schedule],
        "logit_adjustment": job.logit_adjustment,
        "seed": config.seed,
        "test": Test(*job.test, metrics=job.metrics, every=config.eval_every, batch_size=config.eval_batch_size),
        "runtime": runtime,
        "start": job.start,
        "checkpoints": checkpoints_of(folder, config, resume=resume),
        "max_bad_rounds": config.max_bad_rounds,
    }
    if runtime.rank != 0:

        def begin_here(session: Session) -> None:
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the first process of another machine
                keep_config(folder, config)

        train(job.model, job.loss_fn, job.data, on_start=begin_here, **arguments).export(folder)
        return
    with RunFolder(folder, config, resume=resume, heard=heard) as files:

        def each_round(record: Any, state: Any) -> None:
            files.on_round(record, state)
            if on_round is not None:
                on_round(record, state)

        def begin(session: Session) -> None:
            files.begin(session.plan.axes, session.state.round)
            if resume:
                round = session.state.round
                print(f"{folder}: resuming after round {round} of {config.rounds}", file=sys.stderr, flush=True)

        result = train(job.model, job.loss_fn, job.data, on_start=begin, on_round=each_round, **arguments)
        result.export(folder)
        files.finish(result)
