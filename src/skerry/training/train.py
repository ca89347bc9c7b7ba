"""Training: a session, batches, evaluation; returns the calibrated full model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoint import Checkpoints
from skerry.checkpoint.export import SHARD_BYTES
from skerry.checkpoint.state import State
from skerry.model.inputs import Inputs, fit, join, tensors_of, to
from skerry.plan.table import Plan
from skerry.runtimes.runtime import FullModel, Runtime, Store
from skerry.runtimes.serial import Serial
from skerry.subnet.extract import extract
from skerry.trained import Start
from skerry.training import cost
from skerry.training.evaluate import Metric, Score
from skerry.training.priors import adjusted
from skerry.training.record import Record
from skerry.training.schedules import Schedule, constant
from skerry.training.session import Session
from skerry.training.worker import Data, LossFn, OptimizerFn, Worker, local_steps

CALIBRATION_SAMPLES = 2048


@dataclass(frozen=True, repr=False)
class Result:
    """What training returns.

    Attributes:
        full: the calibrated full model, wherever it is kept.
        state: counts and sums.
        store: keeps the full model as it was trained.
        score: its score on the test data.
        plan: its plan.
        step_cost: what a local step costs the worker with most to hold.
        session: that it was trained in.
    """

    full: FullModel
    state: State
    store: Store
    score: Score | None
    plan: Plan
    step_cost: cost.StepCost
    session: Session

    @property
    def num_parameters(self) -> int:
        """Of the full model."""
        return sum(parameter.numel() for parameter in self.full.inner.parameters())

    @property
    def model(self) -> nn.Module:
        """The calibrated full model; ValueError where no process holds it: ``export`` writes it there."""
        return self.full.whole()

    def export(self, folder: Path | str, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the calibrated full model to safetensors files in ``folder``; every process must call it."""
        self.session.export(self.full, folder, shard_bytes=shard_bytes)


OnRound = Callable[[Record, State], None]


def train(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    *,
    plan: Plan,
    algorithm: Algorithm,
    optimizer: OptimizerFn,
    num_rounds: int,
    schedule: Schedule = constant,
    logit_adjustment: Tensor | None = None,
    seed: int = 0,
    test: tuple[Inputs, Tensor] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    eval_every: int = 0,
    eval_batch_size: int = 1024,
    calibration_samples: int = CALIBRATION_SAMPLES,
    runtime: Runtime | None = None,
    start: Start | None = None,
    checkpoints: Checkpoints | None = None,
    on_start: Callable[[Session], None] | None = None,
    on_round: OnRound | None = None,
    max_bad_rounds: int = 5,
    verify: bool = True,
) -> Result:
    """Train ``model`` as independent subnets and return the calibrated full model.

    Each round t: units are assigned by ``algorithm.partition`` from (seed, t); each worker trains its subnet for
    ``algorithm.local_steps`` steps on its own data; each element becomes the mean over its holders. Serially ``model``
    is trained in place, unless the algorithm trains other nets instead (``narrow``, ``relay``, ``ensemble``); with one
    process per worker it is only where training starts from, and may be on the meta device (see ``start``). Small
    subnets gain little from several torch threads: consider ``torch.set_num_threads(1)``.

    Args:
        model: the full model.
        loss_fn: ``loss_fn(what the model returns, y)``, the mean over the batch.
        data: each worker's batches.
        plan: what is dealt out.
        algorithm: who holds what, and for how long.
        optimizer: makes a ``torch.optim`` optimizer of parameters.
        num_rounds: rounds in all, those before a resume included.
        schedule: learning-rate factor by progress (0 to 1).
        logit_adjustment: (num_workers, num_classes): row w is added to what the subnet of worker w returns, (B,
            num_classes), in local steps only; for workers with unlike labels ``log_priors``. A process reads the
            rows of its own workers.
        seed: of dropout and the like; data and dealing have their own.
        test: (inputs, labels) to evaluate on; a model of several inputs has a tuple or a dict of them.
        metrics: what else to report of it, by name: functions of (what the model returns, y) that return a number for
            each sample, such as ``skerry.training.precision_at(5)``, or metrics of torchmetrics.
        eval_every: rounds between evaluations; 0: only after the last.
        eval_batch_size: samples a forward of the full model. Where no process holds it, each forward gathers it once.
        calibration_samples: inputs used to estimate batch-norm statistics of the full model, over all workers.
        runtime: where workers run; serially in this process by default.
        start: where values come from, if not from ``model``: ``lambda m: skerry.weights.FromInitializer(m, seed=0)`` or
            ``lambda m: skerry.weights.FromFiles(path, m)``. Each process makes or reads only what it holds.
        checkpoints: where to write checkpoints and whether to resume from the last.
        on_start: called with the session before its first round.
        on_round: called after each round, for progress and files.
        max_bad_rounds: so many rounds in a row with a refused piece, or all there are, end the training.
        verify: whether to check first that the plan holds for the model (``verify.py``); for a model on meta
            with a small net of its modules.

    Raises:
        ValueError: the plan does not fit the model, there are more workers than units, the data is split for another
            number of workers, ``logit_adjustment`` has other rows than workers or columns than the model has logits,
            or a batch norm keeps no running statistics.
        CheckpointError: the checkpoint cannot be resumed from.
        TrainingFailed: pieces had to be refused ``max_bad_rounds`` times in a row.
    """
    if not (hasattr(data, "batches") and hasattr(data, "sample")):
        raise ValueError(f"data: got {type(data).__name__}, expected skerry.Shards or another skerry.training.Data")
    if data.num_workers != algorithm.partition.num_workers:
        raise ValueError(
            f"the data is split for {data.num_workers} workers, algorithm '{algorithm.name}' has "
            f"{algorithm.partition.num_workers}; split it for as many"
        )
    rows, num_workers = logit_adjustment, algorithm.partition.num_workers
    if rows is not None and not isinstance(rows, Tensor):
        raise ValueError(
            f"logit_adjustment: got {type(rows).__name__}, expected a tensor, such as skerry.training.log_priors(...)"
        )
    if rows is not None and (rows.dim() != 2 or len(rows) != num_workers):
        raise ValueError(
            f"logit_adjustment: shape {tuple(rows.shape)}, expected ({num_workers}, number of classes), a row for each "
            "worker; make it of as many parts (skerry.training.log_priors)"
        )
    runtime = Serial() if runtime is None else runtime
    mine = runtime.mine(algorithm.partition.num_workers)
    session = Session(
        model,
        plan=plan,
        algorithm=algorithm,
        optimizer=optimizer,
        num_rounds=num_rounds,
        example_inputs=data.sample(mine[0], 4) if verify else None,
        schedule=schedule,
        seed=seed,
        runtime=runtime,
        start=start,
        checkpoints=checkpoints,
        max_bad_rounds=max_bad_rounds,
        loss_fn=loss_fn,
        test=test,
        eval_batch_size=eval_batch_size,
    )
    loop, state = session.loop, session.state
    if on_start is not None:
        on_start(session)

    def evaluated() -> tuple[FullModel, Score | None]:
        full = session.full(*calibration_inputs(data, mine, calibration_samples))
        return full, session.score(full, metrics=metrics) if test is not None else None

    outer = algorithm.outer is not None
    costs = _StepCosts(loss_fn, optimizer, lambda: next(iter(data.batches(mine[0], 0, 1))), outer)
    final: tuple[FullModel, Score | None] | None = None
    with session:
        for round in session.rounds():
            for worker in round.workers:
                own = loss_fn if rows is None else adjusted(loss_fn, rows[worker.number].to(loop.device))
                _train(worker, own, data, loop.device)
                worker.flop = float(costs.of(worker.narrow).flop * worker.num_steps)
            score = None
            if state.round == num_rounds:
                final = evaluated()
                score = final[1]
            elif eval_every and state.round % eval_every == 0:
                score = evaluated()[1]  # between rounds the memory of the full model is not needed
            if on_round is not None:
                on_round(round.record(score), state)
    full, score = final or evaluated()
    first = loop.assignment(0)
    subnets = (extract(loop.model, loop.plan, first.units(w)) for w in range(first.num_workers))
    largest = max((costs.of(subnet) for subnet in subnets), key=lambda c: c.memory)
    return Result(full, state, loop.store, score, loop.plan, largest, session)


def _train(worker: Worker, loss_fn: LossFn, data: Data, device: torch.device) -> None:
    """Take the worker's local steps on its own data."""
    batches = data.batches(worker.number, worker.first_step, worker.num_steps)
    try:
        local_steps(worker, loss_fn, ((to(x, device), to(y, device)) for x, y in batches))
    except Exception as error:  # of the model, the loss or the data, which the user knows
        with suppress(Exception):
            (batch,) = data.batches(worker.number, worker.first_step, 1)
            x, y = ([f"{t.dtype} {tuple(t.shape)}" for t in tensors_of(part)] for part in batch)
            words = f"its first batch: inputs {', '.join(x)}, labels {', '.join(y)}"
            error.add_note(f"(worker {worker.number}, round {worker.round}, {words})")
        raise


@dataclass
class _StepCosts:
    """What a local step costs, counted once for each size of subnet."""

    loss_fn: LossFn
    optimizer: OptimizerFn
    batch: Callable[[], tuple[Inputs, Any]]
    outer: bool
    known: dict[tuple[torch.Size, ...], cost.StepCost] = field(default_factory=dict)

    def of(self, subnet: nn.Module) -> cost.StepCost:
        """Return the cost for ``subnet``, on a batch of a worker of ours."""
        key = tuple(t.shape for t in subnet.parameters())
        if key not in self.known:
            found = cost.step_cost(subnet, self.loss_fn, self.batch(), self.optimizer)
            of_outer = 2 * found.gradients if self.outer else 0  # where the round began, and the momentum
            self.known[key] = replace(found, optimizer=found.optimizer + of_outer)
        return self.known[key]


def calibration_inputs(data: Data, workers: Sequence[int], num: int = CALIBRATION_SAMPLES) -> list[Inputs]:
    """Return inputs of ``workers``, of ``num`` over all workers, to estimate batch-norm statistics with."""
    inputs = [data.sample(w, max(1, num // data.num_workers)) for w in workers]
    # One batch where it can be: other batching, other statistics of later layers.
    return [join(inputs)] if fit(inputs) else inputs
