"""Training: prepare the state, loop over rounds, return the calibrated full model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from skerry import cost, optimizer_state
from skerry.aggregate import is_finite
from skerry.algorithm import Algorithm
from skerry.calibrate import check_batch_norm
from skerry.checkpoint import Checkpoints
from skerry.evaluate import Metric, Score
from skerry.export import SHARD_BYTES, export
from skerry.inputs import to
from skerry.local import Data, LossFn, OptimizerFn
from skerry.loop import CALIBRATION_SAMPLES, Loop
from skerry.partition import Everything
from skerry.plan import Plan, named_tensors
from skerry.randomness import seed_of
from skerry.runtimes import BEGAN, KEPT, RESTING, Beginning, FullModel, Runtime, Serial, Store
from skerry.schedule import Schedule, constant
from skerry.sources import FromModel, Source, ZeroBetween, skeleton
from skerry.state import Record, State
from skerry.subnet import narrow_model
from skerry.verify import verify as verify_plan
from skerry.verify import verify_small

Start = Callable[[nn.Module], Source]
"""Given the model to train, where its values come from."""


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
    """

    full: FullModel
    state: State
    store: Store
    score: Score | None
    plan: Plan
    step_cost: cost.StepCost
    runtime: Runtime

    @property
    def num_parameters(self) -> int:
        """Of the full model."""
        return sum(parameter.numel() for parameter in self.full.inner.parameters())

    @property
    def model(self) -> nn.Module:
        """The calibrated full model; ValueError where no process holds it: ``export`` writes it there."""
        return self.full.whole()

    def export(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the calibrated full model to safetensors files in ``folder``; every process must call it."""
        self.runtime.at(self.state.round - 1, "export")
        export(self.full, folder, first=self.runtime.rank == 0, shard_bytes=shard_bytes)
        self.runtime.total(torch.zeros(1))  # nobody leaves before all is written


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
    seed: int = 0,
    test: tuple[Tensor, Tensor] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    eval_every: int = 0,
    eval_batch_size: int = 1024,
    calibration_samples: int = CALIBRATION_SAMPLES,
    runtime: Runtime | None = None,
    start: Start | None = None,
    checkpoints: Checkpoints | None = None,
    on_start: Callable[[State], None] | None = None,
    on_round: OnRound | None = None,
    max_bad_rounds: int = 5,
    verify: bool = True,
) -> Result:
    """Train ``model`` as independent subnets and return the calibrated full model.

    Each round t: units are assigned by ``algorithm.partition`` from (seed, t); each worker trains its subnet for
    ``algorithm.local_steps`` steps on its own data; each element becomes the mean over its holders. Serially ``model``
    is trained in place (but for algorithms with ``width < 1``, which train a fresh narrow one); with one process a
    worker it is only where training starts from, and may be on the meta device (see ``start``). Small subnets gain
    little from several torch threads and lose much on a busy machine: consider ``torch.set_num_threads(1)``.

    Args:
        model: the full model.
        loss_fn: ``loss_fn(what the model returns, y)``, the mean over the batch.
        data: each worker's batches.
        plan: what is dealt out.
        algorithm: who holds what, and for how long.
        optimizer: makes a ``torch.optim`` optimizer of parameters.
        num_rounds: rounds in all, those before a resume included.
        schedule: learning-rate factor by progress (0 to 1).
        seed: of dropout and the like; data and dealing have their own.
        test: (inputs, labels) to evaluate on.
        metrics: what else to report of it, by name: functions of (what the model returns, y) that return a number for
            each sample, such as ``skerry.precision_at(5)``, or metrics of torchmetrics.
        eval_every: rounds between evaluations; 0: only after the last.
        eval_batch_size: samples a forward of the full model. Where no process holds it, each forward gathers it once.
        calibration_samples: inputs used to estimate batch-norm statistics of the full model, over all workers.
        runtime: where workers run; serially in this process by default.
        start: where values come from, if not from ``model``: ``lambda m: skerry.FromInitializer(m, seed=0)`` or
            ``lambda m: skerry.FromFiles(path, m)``. Each process makes or reads only what it holds.
        checkpoints: where to write checkpoints and whether to resume from the last.
        on_start: called with the state that training starts from.
        on_round: called after each round, for progress and files.
        max_bad_rounds: so many rounds in a row with a refused piece end the training.
        verify: whether to check first that the plan holds for the model (``verify.py``); for a model on meta
            with a small net of its modules.

    Raises:
        ValueError: the plan does not fit the model, there are more workers than units, the data is split for another
            number of workers, or a batch norm keeps no running statistics.
        CheckpointError: the checkpoint cannot be resumed from.
        TrainingFailed: pieces had to be refused ``max_bad_rounds`` times in a row.
    """
    plan.check(model)
    if not plan.axes and not isinstance(algorithm.partition, Everything):
        raise ValueError(f"the plan deals nothing out, so '{algorithm.name}' has nothing to deal; give it rules")
    if plan.blocks and not algorithm.partition.covers:
        raise ValueError(
            f"'{algorithm.name}' leaves units to nobody for a round, and the blocks of this plan have no home to rest "
            "with; deal out units within blocks, or use ist"
        )
    if num_rounds < 1:
        raise ValueError(f"num_rounds={num_rounds}: expected at least 1")
    if not (hasattr(data, "batches") and hasattr(data, "sample")):
        raise ValueError(f"data: got {type(data).__name__}, expected skerry.Shards or another skerry.Data")
    if data.num_workers != algorithm.partition.num_workers:
        raise ValueError(
            f"the data is split for {data.num_workers} workers, algorithm '{algorithm.name}' has "
            f"{algorithm.partition.num_workers}; split it for as many"
        )
    _check_arguments(optimizer, schedule, test)
    runtime = Serial() if runtime is None else runtime
    first = runtime.mine(algorithm.partition.num_workers)[0]
    check_batch_norm(model)
    empty = any(tensor.is_meta for tensor in named_tensors(model).values())
    if empty and start is None:
        raise ValueError(
            "the model is on meta and has no values; give start=lambda m: skerry.FromInitializer(m, seed=0)"
        )
    if verify and not (checkpoints and checkpoints.resume):
        if empty:
            verify_small(model, plan, data.sample(first, 4))
        else:
            verify_plan(model, plan, to(data.sample(first, 4), next(model.parameters()).device))
    model, plan = to_train(model, plan, algorithm, seed)
    source = start(model) if start is not None else FromModel(model)
    if algorithm.zero_between:
        source = ZeroBetween(source, plan, algorithm.partition.assign(plan.axes, 0))
    state = State(0, torch.zeros(plan.num_units, dtype=torch.int64))
    of_optimizer: dict[str, Tensor] = {}
    resumed = checkpoints.last(plan, named_tensors(model), runtime) if checkpoints else None
    if resumed is not None:
        source, state = resumed, resumed.state
        of_optimizer = {n: t for n, t in resumed.sizes.items() if optimizer_state.SEPARATOR in n}
    if on_start is not None:
        on_start(state)
    start_of_state = optimizer_state.initial(optimizer) if algorithm.optimizer_state == "travel" else {}
    assignment = algorithm.partition.assign(plan.axes, min(state.round, num_rounds - 1))
    store = runtime.keep(
        Beginning(
            model=model,
            plan=plan,
            source=source,
            assignment=assignment,
            start=start_of_state,
            state=of_optimizer,
        )
    )
    loop = Loop(
        model=skeleton(model),
        loss_fn=loss_fn,
        data=data,
        plan=plan,
        algorithm=algorithm,
        optimizer=optimizer,
        num_rounds=num_rounds,
        schedule=schedule,
        seed=seed,
        test=test,
        metrics=metrics or {},
        calibration_samples=calibration_samples,
        runtime=runtime,
        store=store,
        eval_batch_size=eval_batch_size,
        start=start_of_state,
        unwatched=_never_finite(store, runtime),
        device=next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu")),
    )
    del source, resumed
    loop.stop_if_failed(state, max_bad_rounds)
    final: tuple[FullModel, Score | None] | None = None
    while state.round < num_rounds:
        started = time.perf_counter()
        refused, train_loss = loop.train_round(state)
        done = state.round == num_rounds
        evaluated = loop.evaluate(state) if done or (eval_every and state.round % eval_every == 0) else None
        score = evaluated[1] if evaluated else None
        final, evaluated = (evaluated if done else None), None  # between rounds its memory is not needed
        state.totals["time_s"] += time.perf_counter() - started
        if on_round is not None:
            on_round(loop.record(state, refused, train_loss, score), state)
        else:
            loop.tell_refused(state, refused)
        if checkpoints is not None:
            checkpoints.write_if_due(state, store, runtime, done=done)
        loop.stop_if_failed(state, max_bad_rounds, refused)
    full, score = final or loop.evaluate(state)
    costs = [loop.step_cost(worker) for worker in range(algorithm.partition.num_workers)]
    return Result(full, state, store, score, plan, max(costs, key=lambda c: c.memory), runtime)


def _never_finite(store: Store, runtime: Runtime) -> frozenset[str]:
    """Names of tensors that are not finite from the start, in any process: a mask of -inf is no sign of trouble."""
    names = sorted(store.sizes)
    shards = {name: t for name, t in store.shards().items() if not name.startswith((BEGAN, KEPT))}
    odd = {name.removeprefix(RESTING) for name, t in shards.items() if not is_finite({name: t})}
    seen = runtime.total(torch.tensor([name in odd for name in names], dtype=torch.int64))
    return frozenset(name for name, count in zip(names, seen.tolist(), strict=True) if count)


def to_train(model: nn.Module, plan: Plan, algorithm: Algorithm, seed: int) -> tuple[nn.Module, Plan]:
    """Return the model that ``algorithm`` trains in the place of ``model``, and its plan."""
    if not algorithm.partition.covers:
        plan = replace(plan, rests=True)
    if algorithm.zero_between:
        plan = plan.without_scale_between()
    if algorithm.width == 1.0:
        return model, plan
    narrow = narrow_model(model, plan, algorithm.width, seed_of(seed, "narrow"))
    return narrow, Plan.whole(narrow)


def _check_arguments(optimizer: object, schedule: object, test: object) -> None:
    """Tell what a newcomer gives easily wrong, before it fails somewhere deep."""
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError("optimizer: expected a function of parameters, such as lambda p: torch.optim.SGD(p, lr=0.1)")
    if not callable(schedule):
        raise ValueError(f"schedule: got {schedule!r}, expected a function of progress, such as skerry.cosine")
    if isinstance(test, tuple) and len(test) == 2 and isinstance(test[1], Tensor) and not len(test[1]):
        raise ValueError("the test set is empty; pass test=None to train without one")
    tensors = isinstance(test, tuple) and len(test) == 2 and all(isinstance(t, Tensor) for t in test)
    if test is not None and not tensors:
        raise ValueError(f"test: got {type(test).__name__}, expected a pair of tensors (inputs, labels)")
