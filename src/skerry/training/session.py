"""Your own training loop: a session hands out rounds, and a round its workers, to be trained as you like.

``skerry.train`` is a loop over a session, too. What a session does beside handing out: it cuts subnets out before local
steps and exchanges the pieces after those of the last worker, keeps the counts, watches (``watch.py``), writes
checkpoints, and ends a training that breaks down.
"""

import math
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # also SyncBatchNorm

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoint import Checkpoints
from skerry.checkpoint.export import SHARD_BYTES, export
from skerry.checkpoint.state import State
from skerry.discovery.verify import verify, verify_small
from skerry.merge.aggregate import is_finite
from skerry.merge.calibrate import check_batch_norm
from skerry.model import optimizer_state
from skerry.model.inputs import Inputs, tensors_of, to
from skerry.model.tensors import named_tensors, skeleton
from skerry.partitions.everything import Everything
from skerry.plan.table import Plan
from skerry.runtimes.overlap import BEGAN
from skerry.runtimes.runtime import KEPT, RESTING, Beginning, FullModel, Handover, Runtime, Store
from skerry.runtimes.serial import Serial
from skerry.trained import Start
from skerry.training.diagnosis import Diagnosis, TheoryWarning
from skerry.training.evaluate import Metric, Score
from skerry.training.loop import Loop
from skerry.training.monitor import Watch
from skerry.training.record import Record
from skerry.training.schedules import Schedule, constant
from skerry.training.worker import LossFn, OptimizerFn, Worker


class Round:
    """One round of a session.

    Attributes:
        number: from 0.
        workers: those that run in this process, one after the other, to be gone through once and to the end. Each is
            ready for its ``num_steps`` local steps, with torch's random state its own; its subnet and optimizer are
            gone when the next one comes. After the last one the pieces are exchanged.
        train_loss: mean over the workers' steps, known after the exchange.
        refused: workers whose pieces were not finite, known after the exchange.
        diagnosis: what was seen of the round (docs/your-run.md), known after the exchange; ``Session.score`` adds the
            full model's loss.
    """

    def __init__(self, loop: Loop, state: State, watch: Watch) -> None:
        self.number = state.round
        self.workers = self._workers()
        self.train_loss = math.nan
        self.refused: tuple[int, ...] = ()
        self.diagnosis = Diagnosis()
        self._loop, self._state, self._watch = loop, state, watch
        self._began: float | None = time.perf_counter()
        self._told = False

    def _workers(self) -> Generator[Worker, None, None]:
        handed: list[Handover] = []
        for number in self._loop.runtime.mine(self._loop.algorithm.partition.num_workers):
            with self._loop.local(self._state, number, handed) as worker:
                self._watch.begin(worker)
                yield worker
                self._watch.end(worker)
        self.refused, self.train_loss = self._loop.exchange(self._state, handed)
        self.diagnosis = self._watch.measured(self._state)

    def record(self, score: Score | None = None) -> Record:
        """Return the round in figures, ``score`` among them. Its time ends here."""
        self._told = True
        self._stop_clock()
        return self._loop.record(self._state, self.refused, self.train_loss, score, self.diagnosis)

    def end(self) -> None:
        """See that it was done, and warn of a refused piece that nobody else has told of; the session does it."""
        if self._state.round == self.number:
            raise ValueError(
                f"round {self.number}: ended before all workers were trained; go through round.workers to the end"
            )
        self._stop_clock()
        if self.refused and not self._told:
            who = ", ".join(map(str, self.refused))
            warnings.warn(f"round {self.number}: refused the piece of worker {who} (not finite)", stacklevel=3)

    def _stop_clock(self) -> None:
        if self._began is not None:
            self._state.totals["time_s"] += time.perf_counter() - self._began
            self._began = None


class Session:
    """Trains ``model`` as independent subnets, in a loop of your own.

    Every process of the runtime makes one with the same arguments. Serially ``model`` is trained in place, unless the
    algorithm trains other nets instead (``narrow``, ``relay``, ``ensemble``); with one process per worker it is only
    where training starts from. ``with`` gives torch's random state back where a loop ends early.

    Every session is watched: ``TheoryWarning`` says where theory expects trouble, ``Round.diagnosis`` has the figures
    (docs/your-run.md). Without ``test`` nothing is known of outputs, without ``worker.step(loss, labels)`` of labels.

    Args:
        model: the full model.
        plan: what is dealt out.
        algorithm: who holds what, and for how long.
        optimizer: makes a ``torch.optim`` optimizer of parameters.
        num_rounds: rounds in all, those before a resume included.
        example_inputs: a few inputs to verify the plan on (``verify.py``); None: it is taken as it is.
        schedule: learning-rate factor by progress (0 to 1).
        seed: of dropout and the like; dealing has its own.
        runtime: where workers run; serially in this process by default.
        start: where values come from, if not from ``model``; see ``train``.
        checkpoints: where to write checkpoints and whether to resume from the last. A round that a ``break`` leaves has
            none. Where a resumed loop gets its batches from is yours to see to: ``worker.first_step`` says where it is.
        max_bad_rounds: so many rounds in a row with a refused piece, or all there are, end the training.
        loss_fn: ``loss_fn(what the model returns, y)``, the mean over the batch, for ``score`` and the watch; a local
            step has the loss that you give it.
        test: (inputs, labels) for ``score``; a model of several inputs has a tuple or a dict of them. The watch looks
            at what the subnets say to a few of them each round.
        eval_batch_size: samples a forward of the full model. Where no process holds it, each forward gathers it once.

    Attributes:
        loop: the steps of a round, with the runtime and the store, which keeps the full model.
        state: counts and sums.

    Raises:
        ValueError: the plan does not fit the model, there are more workers than units, a batch norm keeps no running
            statistics, or there is a test set without a loss.
        CheckpointError: the checkpoint cannot be resumed from.

    Example:
        >>> from skerry import discover, ist
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> x, y = torch.randn(4, 8), torch.ones(4, dtype=torch.int64)
        >>> with Session(
        ...     model, plan=discover(model, x), algorithm=ist(workers=2, local_steps=3),
        ...     optimizer=lambda p: torch.optim.SGD(p, lr=0.1), num_rounds=5,
        ...     loss_fn=nn.functional.cross_entropy, test=(x, y),
        ... ) as session:
        ...     for round in session.rounds():
        ...         for worker in round.workers:
        ...             for _ in range(worker.num_steps):
        ...                 worker.step(nn.functional.cross_entropy(worker.subnet(x), y), y)
        >>> round.diagnosis.least_trained  # of five rounds
        5
        >>> session.score(session.full()).accuracy
        1.0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        plan: Plan,
        algorithm: Algorithm,
        optimizer: OptimizerFn,
        num_rounds: int,
        example_inputs: Inputs | None = None,
        schedule: Schedule = constant,
        seed: int = 0,
        runtime: Runtime | None = None,
        start: Start | None = None,
        checkpoints: Checkpoints | None = None,
        max_bad_rounds: int = 5,
        loss_fn: LossFn | None = None,
        test: tuple[Inputs, Tensor] | None = None,
        eval_batch_size: int = 1024,
    ) -> None:
        plan.check(model)
        if not plan.axes and not isinstance(algorithm.partition, Everything):
            raise ValueError(f"the plan deals nothing out, so '{algorithm.name}' has nothing to deal; give it rules")
        if plan.blocks and not algorithm.partition.covers:
            raise ValueError(
                f"'{algorithm.name}' leaves units to nobody for a round, and the blocks of this plan have no home to "
                "rest with; deal out units within blocks, or use ist"
            )
        if num_rounds < 1:
            raise ValueError(f"num_rounds={num_rounds}: expected at least 1")
        _check_algorithm(algorithm, plan, num_rounds)
        if num_rounds < algorithm.rounds_around:
            warnings.warn(
                TheoryWarning(
                    f"{algorithm.name}: num_rounds={num_rounds}, expected at least {algorithm.rounds_around}: with "
                    "fewer no subnet meets the data of all workers; do more rounds of fewer local steps"
                ),
                stacklevel=2,
            )
        _check_arguments(optimizer, schedule, loss_fn, test)
        check_batch_norm(model)
        empty = any(tensor.is_meta for tensor in named_tensors(model).values())
        if empty and start is None:
            raise ValueError(
                "the model is on meta and has no values; give start=lambda m: skerry.weights.FromInitializer(m, seed=0)"
            )
        if example_inputs is not None and not (checkpoints and checkpoints.resume):
            if empty:
                verify_small(model, plan, example_inputs)
            else:
                verify(model, plan, to(example_inputs, next(model.parameters()).device))
        runtime = Serial() if runtime is None else runtime
        given, its_plan = model, plan
        model, plan = to_train(given, its_plan, algorithm, seed)
        source = algorithm.trains.source(given, its_plan, model, start)
        self.state = State(0, torch.zeros(plan.num_units, dtype=torch.int64))
        of_optimizer: dict[str, Tensor] = {}
        resumed = checkpoints.last(plan, named_tensors(model), runtime) if checkpoints else None
        if resumed is not None:
            source, self.state = resumed, resumed.state
            of_optimizer = {n: t for n, t in resumed.sizes.items() if optimizer_state.SEPARATOR in n}
        start_of_state = optimizer_state.initial(optimizer) if algorithm.optimizer_state == "travel" else {}
        assignment = algorithm.partition.assign(plan.axes, min(self.state.round, num_rounds - 1))
        store = runtime.keep(
            Beginning(
                model=model,
                plan=plan,
                source=source,
                assignment=assignment,
                start=start_of_state,
                state=of_optimizer,
                saved=resumed,
            )
        )
        self.loop = Loop(
            model=skeleton(model),
            plan=plan,
            algorithm=algorithm,
            optimizer=optimizer,
            num_rounds=num_rounds,
            schedule=schedule,
            seed=seed,
            runtime=runtime,
            store=store,
            start=start_of_state,
            unwatched=_never_finite(store, runtime),
            device=next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu")),
        )
        self._checkpoints, self._max_bad_rounds = checkpoints, max_bad_rounds
        self._loss_fn, self._test, self._eval_batch_size = loss_fn, test, eval_batch_size
        self._watch = Watch(self.loop, loss_fn, test, eval_batch_size, resumed=resumed is not None)
        self._round: Round | None = None

    @property
    def plan(self) -> Plan:
        """The plan of what is trained."""
        return self.loop.plan

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._round is not None:
            self._round.workers.close()

    def rounds(self) -> Iterator[Round]:
        """Hand out the rounds that are left, each to be trained before the next.

        Raises:
            TrainingFailed: pieces had to be refused ``max_bad_rounds`` times in a row.
        """
        loop, state = self.loop, self.state
        loop.stop_if_failed(state, self._max_bad_rounds)
        while state.round < loop.num_rounds:
            self._round = round = Round(loop, state, self._watch)
            yield round
            round.end()
            if self._checkpoints is not None:
                done = state.round == loop.num_rounds
                self._checkpoints.write_if_due(state, loop.store, loop.runtime, done=done)
            loop.stop_if_failed(state, self._max_bad_rounds, round.refused)

    def full(self, *inputs: Inputs) -> FullModel:
        """Return the calibrated full model as it is between rounds; every process must call it.

        Args:
            inputs: batches of this process's workers to measure batch-norm statistics on, best a large one.

        Raises:
            ValueError: there is a batch norm and no inputs.
        """
        norms = [name for name, module in self.loop.model.named_modules() if isinstance(module, _BatchNorm)]
        if norms and not inputs:
            raise ValueError(f"full(): {norms[0]} is a batch norm, expected inputs to measure its statistics on")
        return self.loop.full(self.state, inputs)

    def score(
        self,
        full: FullModel,
        loss_fn: LossFn | None = None,
        test: tuple[Inputs, Tensor] | None = None,
        *,
        metrics: Mapping[str, Metric] | None = None,
    ) -> Score:
        """Score what ``full`` returned; every process must call it and does its part.

        Args:
            full: the calibrated full model.
            loss_fn: the mean loss over a batch; None: the session's.
            test: (inputs, labels); None: the session's. Only on this, by the session's loss, the full model is compared
                with its subnets (``Diagnosis.gap``).
            metrics: what else to report, by name; see ``train``.

        Raises:
            ValueError: neither here nor to the session a loss and a test set were given.
        """
        loss_fn, test = loss_fn or self._loss_fn, test or self._test
        if loss_fn is None or test is None:
            raise ValueError("score(): no loss_fn or no test set; give both here, or to the session")
        probe = self._watch.probe if test is self._test and loss_fn == self._loss_fn else None
        score = self.loop.score(self.state, full, loss_fn, test, metrics or {}, self._eval_batch_size, probe)
        if self._round is not None and score.probe_loss is not None:
            self._round.diagnosis = self._watch.scored(self._round.diagnosis, score.probe_loss)
        return score

    def export(self, full: FullModel, folder: Path | str, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Write what ``full`` returned to safetensors files in ``folder``; every process must call it."""
        runtime = self.loop.runtime
        runtime.at(self.state.round - 1, "export")
        export(full, Path(folder), first=runtime.rank == 0, shard_bytes=shard_bytes)
        runtime.total(torch.zeros(1))  # nobody leaves before all is written


def to_train(model: nn.Module, plan: Plan, algorithm: Algorithm, seed: int) -> tuple[nn.Module, Plan]:
    """Return the model that ``algorithm`` trains in the place of ``model``, and its plan."""
    net, plan = algorithm.trains.net(model, plan, seed)
    return net, plan if algorithm.partition.covers else replace(plan, may_be_unassigned=True)


def _never_finite(store: Store, runtime: Runtime) -> frozenset[str]:
    """Names of tensors that are not finite from the start, in any process: a mask of -inf is no sign of trouble."""
    names = sorted(store.sizes)
    shards = {name: t for name, t in store.shards().items() if not name.startswith((BEGAN, KEPT))}
    odd = {name.removeprefix(RESTING) for name, t in shards.items() if not is_finite({name: t})}
    seen = runtime.total(torch.tensor([name in odd for name in names], dtype=torch.int64))
    return frozenset(name for name, count in zip(names, seen.tolist(), strict=True) if count)


def _check_algorithm(algorithm: Algorithm, plan: Plan, num_rounds: int) -> None:
    """Tell before the first round what would only come out in a later one."""
    rounds = sorted({0, min(1, num_rounds - 1), num_rounds // 2, num_rounds - 1}) if algorithm.keeps else []
    held = [algorithm.partition.assign(plan.axes, round).held for round in rounds]
    if not all(torch.equal(held[0], other) for other in held):
        raise ValueError(
            f"'{algorithm.name}': optimizer_state='stay' and an outer optimizer are for workers that keep their units; "
            "deal nothing again (reshuffle=0, no warm-up), or use 'reset' or 'travel'"
        )


def _check_arguments(optimizer: object, schedule: object, loss_fn: object, test: Any) -> None:
    """Tell what a newcomer gives easily wrong, before it fails somewhere deep."""
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError("optimizer: expected a function of parameters, such as lambda p: torch.optim.SGD(p, lr=0.1)")
    if not callable(schedule):
        raise ValueError(f"schedule: got {schedule!r}, expected a function of progress, such as skerry.cosine")
    if test is None:
        return
    if isinstance(test, tuple) and len(test) == 2 and isinstance(test[1], Tensor) and not len(test[1]):
        raise ValueError("the test set is empty; pass test=None to train without one")
    pair = isinstance(test, tuple) and len(test) == 2 and isinstance(test[1], Tensor)
    if not (pair and {t.shape[:1] for t in tensors_of(test[0])} == {test[1].shape[:1]}):
        raise ValueError(
            f"test: got {type(test).__name__}, expected a pair of tensors (inputs, labels) with as many rows; "
            "a model of several inputs has a tuple or a dict of them"
        )
    if loss_fn is None:
        raise ValueError("test: a test set, but no loss_fn; give the function that returns the mean loss over a batch")
