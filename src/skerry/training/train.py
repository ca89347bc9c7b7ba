"""``train``: a loop over a session that takes the batches, evaluates, and returns the calibrated full model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.checkpoint.export import SHARD_BYTES, ExportFormat
from skerry.checkpoint.pretrained import save_pretrained
from skerry.checkpoint.state import State
from skerry.data.loaders import as_data
from skerry.defaults import WORKERS, choose_missing
from skerry.model.inputs import Inputs, fit, join
from skerry.plan.table import Plan
from skerry.privacy.private import Private
from skerry.privacy.private_run import PrivateRun
from skerry.runtimes.runtime import FullModel, Runtime, Store
from skerry.runtimes.serial import or_serial
from skerry.trained import Start
from skerry.training.agreement import data_in_words
from skerry.training.callback import Callback
from skerry.training.check import NOT_ON_SITES, check_arguments, check_data, check_logit_adjustment
from skerry.training.cost import StepCost
from skerry.training.evaluation.evaluate import Score
from skerry.training.evaluation.test_set import Test
from skerry.training.record import Record
from skerry.training.session import Session
from skerry.training.steps.local_training import LocalTraining
from skerry.training.steps.schedules import Schedule, constant
from skerry.training.steps.settings import Deadline, Precision, SchedulerFn
from skerry.training.worker import Data, LossFn, OptimizerFn

CALIBRATION_SAMPLES = 2048


@dataclass(frozen=True, repr=False)
class Result:
    """What training returns.

    Attributes:
        full: the calibrated full model, wherever it is kept.
        score: its score on the test set; None without one.
        step_cost: what a local step of the largest subnet costs.
        session: that it was trained in.
    """

    full: FullModel
    score: Score | None
    step_cost: StepCost
    session: Session

    def __repr__(self) -> str:
        return f"Result(score={self.score}, num_parameters={self.num_parameters})"

    @property
    def state(self) -> State:
        """Counts and sums of the training."""
        return self.session.state

    @property
    def store(self) -> Store:
        """The store of the full model as it was trained, not calibrated."""
        return self.session.setup.store

    @property
    def history(self) -> list[Record]:
        """The record of each round; after a resume, of the rounds since then."""
        return self.session.history

    @property
    def plan(self) -> Plan:
        """The plan of what was trained."""
        return self.session.plan

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the full model."""
        return sum(parameter.numel() for parameter in self.full.inner.parameters())

    @property
    def model(self) -> nn.Module:
        """The calibrated full model; ValueError where no process holds it (``export`` writes it there)."""
        return self.full.whole()

    def export(
        self, folder: Path | str, *, shard_bytes: int | None = SHARD_BYTES, format: ExportFormat = "safetensors"
    ) -> None:
        """Write the calibrated full model to files in ``folder``, as ``Session.export``; every process must call it."""
        self.session.export(self.full, folder, shard_bytes=shard_bytes, format=format)

    def save_pretrained(self, folder: Path | str, tokenizer: Any = None) -> None:
        """Write a model of transformers as its ``from_pretrained`` reads it (``skerry.checkpoint.save_pretrained``)."""
        save_pretrained(self.model, folder, tokenizer)


def train(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data | DataLoader[Any] | Sequence[DataLoader[Any]],
    *,
    plan: Plan | None = None,
    algorithm: Algorithm | None = None,
    optimizer: OptimizerFn | None = None,
    num_rounds: int | None = None,
    schedule: Schedule = constant,
    logit_adjustment: Tensor | None = None,
    seed: int = 0,
    test: Test | tuple[Inputs, Tensor] | None = None,
    calibration_samples: int = CALIBRATION_SAMPLES,
    runtime: Runtime | None = None,
    start: Start | None = None,
    device: str | torch.device | None = None,
    checkpoints: Checkpoints | None = None,
    max_bad_rounds: int = 5,
    verify: bool = True,
    lr_scheduler: SchedulerFn | None = None,
    clip_grad_norm: float | None = None,
    accumulate: int = 1,
    precision: Precision = "fp32",
    checkpoint_activations: bool = False,
    compile: bool = False,
    deadline: Deadline = "none",
    privacy: Private | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train ``model`` as independent subnets and return the calibrated full model.

    In round t, units are assigned by ``algorithm.partition`` from (seed, t); each worker trains its subnet for
    ``algorithm.local_steps`` steps on its own data; then each element becomes the mean over its holders. Serially
    ``model`` is trained in place, unless the algorithm trains other nets instead (``narrow``, ``relay``, ``ensemble``);
    with one process per worker it only gives the values to start from, and may be on the meta device (see ``start``).
    Small subnets gain little from several torch threads: consider ``torch.set_num_threads(1)``.

    ``plan``, ``algorithm``, ``optimizer`` and ``num_rounds`` are chosen if they are None (``skerry/defaults.py``); the
    first process says on stderr which, and why.

    Args:
        model: the full model.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch.
        data: each worker's batches: a ``DataLoader``, which is dealt to the workers, or a list of one per worker (both
            as by ``from_loaders``, with ``seed``), ``Shards``, or any other ``skerry.training.Data``.
        plan: what is dealt out.
        algorithm: who holds what, and for how long.
        optimizer: a function of the worker's subnet that returns a ``torch.optim`` optimizer.
        num_rounds: rounds in all, including those before a resume.
        schedule: learning-rate factor by progress (0 to 1).
        logit_adjustment: (num_workers, num_classes); row w is added to the outputs (B, num_classes) of worker w's
            subnet, in local steps only; a row per client, where the algorithm has clients. With label skew:
            ``log_priors``. A process reads the rows of its own workers.
        seed: of dropout and the like, and of loaders; other data, and dealing, have their own.
        test: (inputs, labels) to evaluate on after the last round; a ``skerry.training.Test`` to evaluate more often,
            with further metrics, or in other batches.
        calibration_samples: samples, over all workers, to measure batch-norm statistics of the full model on.
        runtime: where workers run; by default all of them in this process, one after the other.
        start: where values come from, if not from ``model``: ``lambda m: skerry.weights.FromInitializer(m, seed=0)`` or
            ``lambda m: skerry.weights.FromFiles(path, m)``. Each process creates or reads only what it holds.
        device: where subnets are trained: ``"cuda"``, ``"cuda:1"``, ``"cpu"``, ``"mps"``, or ``"auto"`` (CUDA where
            there is one); None: where the model is, the CPU for one on meta. Serially the model is moved there.
        checkpoints: where to write checkpoints and whether to resume from the latest.
        max_bad_rounds: training ends after this number of rounds in a row with a refused worker, or after
            ``num_rounds`` of them if that is fewer.
        verify: whether to check first that the plan holds for the model (``discovery/verify.py``); for a model on meta
            by a small net of its modules.
        lr_scheduler: makes a scheduler of ``torch.optim.lr_scheduler`` from an optimizer, instead of ``schedule``; it
            is stepped after each local step.
        clip_grad_norm: the most that the norm of a subnet's gradients may be in a step.
        accumulate: micro-batches per step, of equal size, into which a worker's batch is split.
        precision: "bf16" and "fp16" run the subnet's forward in autocast.
        checkpoint_activations: compute repeated blocks again in the backward pass, which takes time and saves memory.
        compile: compile subnets with ``torch.compile``; what these five cost is in docs/local-steps.md.
        deadline: "adaptive": slow workers take fewer local steps, by their measured speeds.
        privacy: differential privacy of each worker's samples (docs/private.md).
        callbacks: what to call as training goes: progress, files, early stopping (``skerry.callbacks``).

    Raises:
        ValueError: the plan does not fit the model, there are more workers than units, the data is split for another
            number of workers, ``logit_adjustment`` does not have a row per worker and a column per logit, or a batch
            norm keeps no running statistics.
        CheckpointError: the checkpoint cannot be resumed from.
        TrainingFailed: a worker was refused in ``max_bad_rounds`` rounds in a row.

    Example:
        >>> from skerry import Shards, discover, ist, split
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> x = torch.randn(64, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> result = train(
        ...     model, nn.functional.cross_entropy, Shards(x, y, split(y, 2, "iid", seed=0), batch_size=16, seed=0),
        ...     plan=discover(model, x[:8]), algorithm=ist(workers=2, local_steps=10),
        ...     optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.5), num_rounds=10, test=(x, y),
        ... )
        >>> result.score.accuracy > 0.8
        True
    """
    check_arguments(
        {
            "model": model,
            "loss_fn": loss_fn,
            "seed": seed,
            "calibration_samples": calibration_samples,
            "max_bad_rounds": max_bad_rounds,
            "verify": verify,
        },
        {
            "plan": plan,
            "algorithm": algorithm,
            "optimizer": optimizer,
            "num_rounds": num_rounds,
            "runtime": runtime,
            "start": start,
            "checkpoints": checkpoints,
        },
    )
    runtime = or_serial(runtime)
    num_workers = _num_workers(data, algorithm, runtime)
    source: Data = as_data(data, num_workers, seed)
    check_data(source, algorithm, num_workers)
    check_logit_adjustment(logit_adjustment, num_workers)
    if privacy is not None and logit_adjustment is not None:
        raise ValueError("privacy: logit_adjustment tells of a worker's labels without noise; leave it out")
    mine = runtime.mine(num_workers)
    if privacy is not None and not mine:
        raise ValueError(NOT_ON_SITES)
    first = mine[0] if mine else 0  # a server of sites has no workers
    several = runtime.num_processes > 1
    if plan is None or algorithm is None or optimizer is None or num_rounds is None:
        choice = choose_missing(
            model,
            source.sample(first, 8),
            num_workers=num_workers,
            steps_per_pass=getattr(source, "steps_per_pass", None),
            plan=plan,
            algorithm=algorithm,
            optimizer=optimizer,
            num_rounds=num_rounds,
        )
        plan, algorithm, optimizer, num_rounds = choice.plan, choice.algorithm, choice.optimizer, choice.num_rounds
        if runtime.rank == 0:
            print(choice, file=sys.stderr, flush=True)
    inputs = source.sample(first, 4) if verify or several else None
    if several:
        runtime.agree(data_in_words(source, inputs, logit_adjustment, calibration_samples))
    private = None if privacy is None else PrivateRun.of(privacy, source)
    batches: Data = source if private is None else private.data
    session = Session(
        model,
        plan=plan,
        algorithm=algorithm,
        optimizer=optimizer,
        num_rounds=num_rounds,
        example_inputs=inputs if verify else None,
        schedule=schedule,
        seed=seed,
        runtime=runtime,
        start=start,
        device=device,
        checkpoints=checkpoints,
        max_bad_rounds=max_bad_rounds,
        loss_fn=loss_fn,
        test=test,
        has_priors=logit_adjustment is not None,
        lr_scheduler=lr_scheduler,
        clip_grad_norm=clip_grad_norm,
        accumulate=accumulate,
        precision=precision,
        checkpoint_activations=checkpoint_activations,
        compile=compile,
        deadline=deadline,
        private=private,
        callbacks=callbacks,
    )
    setup, state = session.setup, session.state

    latest: tuple[FullModel, Score | None] | None = None

    def evaluated() -> tuple[FullModel, Score | None]:
        nonlocal latest
        if latest is None:
            some = calibration_inputs(source, mine or [0], calibration_samples) if private is None else []
            full = session.full(*some)
            latest = full, session.score(full) if session.test is not None else None
        return latest

    example = next(iter(source.batches(first, 0, 1)))  # now, since loaders read on from there
    local = LocalTraining(
        setup, loss_fn, batches, example=example, logit_adjustment=logit_adjustment, first_round=state.round
    )
    with session:
        for round in session.rounds(at_stop=evaluated):
            latest = None  # the memory of the last full model is free again
            for worker in round.workers:
                local.take(worker)
            every = session.test.every if session.test is not None else 0
            if state.round == num_rounds or (every and state.round % every == 0):
                evaluated()
        full, score = evaluated()
    return Result(full, score, local.largest_step_cost(), session)


def _num_workers(data: Any, algorithm: Algorithm | None, runtime: Runtime) -> int:
    """Return the number of parts of the data: the algorithm's, or that of processes, or the data's."""
    if algorithm is not None:
        return algorithm.num_parts
    if runtime.num_processes > 1:
        return runtime.num_processes
    if isinstance(data, list | tuple):
        return len(data)
    return WORKERS if isinstance(data, DataLoader) else getattr(data, "num_workers", WORKERS)


def calibration_inputs(data: Data, workers: Sequence[int], num: int = CALIBRATION_SAMPLES) -> list[Inputs]:
    """Return inputs to measure batch-norm statistics on.

    Args:
        data: each worker's batches.
        workers: the workers of this process.
        num: samples over all workers of all processes.
    """
    inputs = [data.sample(w, max(1, num // data.num_workers)) for w in workers]
    # In one batch if possible: statistics of later layers depend on how samples are batched.
    return [join(inputs)] if fit(inputs) else inputs
