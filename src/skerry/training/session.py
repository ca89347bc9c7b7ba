"""A training loop of your own: a session hands out rounds, and a round its workers, to train them as you like.

``skerry.train`` is a loop over a session, too. The session cuts subnets out before local steps, exchanges them after
those of the last worker, keeps the counts, observes the run (``diagnosis/``), writes checkpoints, and ends a training
that breaks down.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # also SyncBatchNorm

from skerry.algorithm import Algorithm
from skerry.checkpoint.checkpoints import Checkpoints
from skerry.checkpoint.export import SHARD_BYTES, ExportFormat, export
from skerry.model.device import chosen_device
from skerry.model.inputs import Inputs
from skerry.plan.table import Plan
from skerry.privacy.private_run import PrivateRun
from skerry.runtimes.runtime import Change, FullModel, Runtime
from skerry.runtimes.serial import or_serial
from skerry.trained import Start
from skerry.training.agreement import session_in_words
from skerry.training.callback import Callback, Callbacks
from skerry.training.check import (
    check_algorithm,
    check_arguments,
    check_functions,
    check_model,
    check_private,
    check_steps,
    verify_plan,
    warn_of_frozen_readers,
)
from skerry.training.diagnosis.judge import Judge
from skerry.training.diagnosis.observer import Observer
from skerry.training.evaluation.evaluate import Score
from skerry.training.evaluation.held_by import agree_on_test
from skerry.training.evaluation.test_set import Test, as_test
from skerry.training.phases.evaluation_phase import calibrated_full_model, score_full_model
from skerry.training.phases.exchange_phase import stop_if_failed
from skerry.training.record import Record
from skerry.training.round import Round
from skerry.training.settings import Settings
from skerry.training.setup import note_private_round, set_up
from skerry.training.steps.schedules import Schedule, constant
from skerry.training.steps.settings import Deadline, Precision, SchedulerFn, StepSettings
from skerry.training.worker import LossFn, OptimizerFn


class Session:
    """Trains ``model`` as independent subnets, in a loop of your own.

    Every process of the runtime makes one with the same arguments. Serially ``model`` is trained in place, unless the
    algorithm trains other nets instead (``narrow``, ``relay``, ``ensemble``); with one process per worker it only
    gives the values to start from. As a context manager it calls ``on_start`` and ``on_end`` of callbacks, and restores
    torch's random state when a loop ends early.

    Every session is observed: ``TheoryWarning`` says where theory expects trouble, ``Round.diagnosis`` has the measures
    (docs/your-run.md). Outputs are measured only with ``test``, labels only with ``worker.step(loss, labels)``.

    Args:
        model: the full model.
        plan: what is dealt out.
        algorithm: who holds what, and for how long.
        optimizer: a function of the worker's subnet that returns a ``torch.optim`` optimizer.
        num_rounds: rounds in all, including those before a resume.
        example_inputs: inputs of a few samples to verify the plan on; None: it is not verified.
        schedule, seed, runtime, start, device, max_bad_rounds: as in ``train``.
        checkpoints: where to write checkpoints and whether to resume from the latest. A round that ends by ``break``
            has none. After a resume, ``worker.first_step`` says which batches come next.
        loss_fn: ``loss_fn(output, labels)``, the mean over a batch, for ``score`` and ``Round.diagnosis``; a local
            step uses the loss that you give it.
        test: (inputs, labels), or a ``Test``, for ``score``; the subnets' outputs on a few of its samples are measured
            each round. ``Test.every`` has no effect here.
        has_priors: whether your local steps add workers' label priors to the logits, so that no warning advises it.
        lr_scheduler, clip_grad_norm, precision, checkpoint_activations, compile, deadline: see ``StepSettings``, and
            docs/local-steps.md.
        accumulate: losses per step: call ``worker.backward(loss)`` that often, then ``worker.step()``.
        private: trains with differential privacy: ``PrivateRun.of(Private(...), data)``. Then take batches from its
            ``data``, and steps with ``worker.private_step``.
        callbacks: what to call as training goes (``skerry.callbacks``); the loop must run in ``with session:`` then.

    Attributes:
        setup: what stays the same from round to round: settings, the device of subnets, the store of the full model.
        state: counts and sums.
        test: the test set, or what is known here of one that only another process holds; None without one.
        history: the records of the rounds that this session has trained; those before a resume are not in it.
        callbacks: those given.

    Raises:
        ValueError: the plan does not fit the model, there are more workers than units, a batch norm keeps no running
            statistics, there is a test set without a loss, or another process has other arguments.
        CheckpointError: the checkpoint cannot be resumed from.

    Example:
        >>> from skerry import discover, ist
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> x, y = torch.randn(4, 8), torch.ones(4, dtype=torch.int64)
        >>> with Session(
        ...     model, plan=discover(model, x), algorithm=ist(workers=2, local_steps=3),
        ...     optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1), num_rounds=5,
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
        device: str | torch.device | None = None,
        checkpoints: Checkpoints | None = None,
        max_bad_rounds: int = 5,
        loss_fn: LossFn | None = None,
        test: Test | tuple[Inputs, Tensor] | None = None,
        has_priors: bool | None = None,
        lr_scheduler: SchedulerFn | None = None,
        clip_grad_norm: float | None = None,
        accumulate: int = 1,
        precision: Precision = "fp32",
        checkpoint_activations: bool = False,
        compile: bool = False,
        deadline: Deadline = "none",
        private: PrivateRun | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        check_arguments(
            {
                "model": model,
                "plan": plan,
                "algorithm": algorithm,
                "optimizer": optimizer,
                "num_rounds": num_rounds,
                "seed": seed,
                "max_bad_rounds": max_bad_rounds,
            },
            {"loss_fn": loss_fn, "runtime": runtime, "start": start, "checkpoints": checkpoints},
        )
        own_test = as_test(test)
        self._callbacks = Callbacks(callbacks, self)
        given = Settings(
            model=model,
            plan=plan,
            algorithm=algorithm,
            optimizer=optimizer,
            num_rounds=num_rounds,
            schedule=schedule,
            steps=StepSettings(
                lr_scheduler=lr_scheduler,
                clip_grad_norm=clip_grad_norm,
                accumulate=accumulate,
                precision=precision,
                checkpoint_activations=checkpoint_activations,
                compile=compile,
                deadline=deadline,
            ),
            seed=seed,
            runtime=or_serial(runtime),
            device=chosen_device(device, model),
            checkpoints=checkpoints,
            max_bad_rounds=max_bad_rounds,
            loss_fn=loss_fn,
            private=private,
        )
        check_model(given, start)
        check_algorithm(algorithm, plan, num_rounds)
        check_functions(given, test)
        check_steps(given)
        if private is not None:
            check_private(given)
        if given.runtime.num_processes > 1 or not given.runtime.mine(algorithm.partition.num_workers):  # elsewhere
            given.runtime.agree(session_in_words(given, self._callbacks.together))
        self.test = agree_on_test(own_test, given.runtime)
        warn_of_frozen_readers(given)
        if example_inputs is not None and not given.runtime.goes_on and not (checkpoints and checkpoints.resume):
            verify_plan(given, example_inputs)
        self.setup, self.state = set_up(given, start)
        judge = Judge(self.setup, plan, has_priors, self.state.observed)
        self._observer = Observer(self.setup, own_test, judge)
        self._round: Round | None = None
        self.history: list[Record] = []
        self.callbacks, self._entered = tuple(callbacks), False
        self._stopping = ""  # who has stopped the training

    @property
    def plan(self) -> Plan:
        """The plan of what is trained."""
        return self.setup.plan

    def __enter__(self) -> Self:
        self._entered = True
        self._callbacks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._round is not None:
            self._round.workers.close()
        self._callbacks.end(error)

    def stop(self) -> None:
        """End the training after this round, as if it were the last; every process must call it in the same round."""
        self._stopping = self._callbacks.running or "the loop"

    def rounds(self, at_stop: Callable[[], object] | None = None) -> Iterator[Round]:
        """Yield the rounds that are left, each to be trained before the next.

        Args:
            at_stop: called when a callback's ``on_round`` has stopped the training and the round has no score, to
                evaluate once more: that score is then in the round's record, its files and its checkpoint.

        Raises:
            TrainingFailed: a worker was refused in ``max_bad_rounds`` rounds in a row.
            ValueError: there are callbacks, and the loop is not in ``with session:``; or not every process has stopped.
        """
        setup, state = self.setup, self.state
        if self.callbacks and not self._entered:
            raise ValueError("callbacks: write the loop in `with session:`, so that they are told when it ends")
        self._stop_if_failed()
        stops = self._all_stop()
        change = setup.runtime.change
        if change is not None and change.unrecorded:
            stops = self._end(self._next_round(change), at_stop)
            change = None
        while state.round < setup.num_rounds and not stops:
            if setup.runtime.ending is not None:
                self._save(done=True)
                raise setup.runtime.ending
            round, change = self._next_round(change), None
            if setup.private is not None:
                note_private_round(setup, state)
                if setup.private.is_secret:  # what is seen from now on is in the account, whatever happens
                    self._save(done=True)
            yield round
            stops = self._end(round, at_stop)

    def _next_round(self, change: Change | None) -> Round:
        self._round = Round(self.setup, self.state, self._observer, self._callbacks.on_step(), change)
        return self._round

    def _end(self, round: Round, at_stop: Callable[[], object] | None) -> bool:
        """Record a round whose exchange is over; return whether the training stops."""
        self.history.append(round.end())
        self._callbacks.round(self.history[-1])
        stops = self._all_stop()
        last = stops or self.state.round == self.setup.num_rounds
        if last and round.score is None and at_stop is not None:
            at_stop()
            self.history[-1] = round.end()
        self._callbacks.report(self.history[-1])
        if (private := self.setup.private) is None or not private.is_secret or last:
            self._save(done=last or private is not None)
        self.setup.runtime.went_on(self.state)
        self._stop_if_failed(round.refused, round.fault)
        return stops

    def _save(self, *, done: bool) -> None:
        setup = self.setup
        if setup.checkpoints is not None:
            setup.checkpoints.save_if_due(setup.algorithm.name, self.state, setup.store, setup.runtime, done=done)

    def _all_stop(self) -> bool:
        """Return whether the training stops; raise ValueError if not all processes say the same."""
        runtime = self.setup.runtime
        num = int(runtime.total(torch.tensor(int(bool(self._stopping)))))
        if num not in (0, runtime.num_processes):
            callers = runtime.gather(self._stopping)
            ranks = ", ".join(str(rank) for rank, caller in enumerate(callers) if caller)
            raise ValueError(
                f"{next(filter(None, callers))}: session.stop() on rank {ranks} only; every process must call it in "
                "the same round"
            )
        return num > 0

    def _stop_if_failed(self, refused: tuple[int, ...] = (), fault: str = "") -> None:
        stop_if_failed(self.state, min(self.setup.max_bad_rounds, self.setup.num_rounds), refused, fault)

    def full(self, *inputs: Inputs) -> FullModel:
        """Return the calibrated full model as it is between rounds; every process must call it.

        Args:
            inputs: batches of this process's workers to measure batch-norm statistics on; one large batch is best.

        Raises:
            ValueError: there is a batch norm and no inputs.
        """
        norms = [name for name, module in self.setup.model.named_modules() if isinstance(module, _BatchNorm)]
        if norms and not inputs:
            raise ValueError(f"full(): {norms[0]} is a batch norm, expected inputs to measure its statistics on")
        return calibrated_full_model(self.setup, self.state, inputs)

    def score(
        self, full: FullModel, loss_fn: LossFn | None = None, test: Test | tuple[Inputs, Tensor] | None = None
    ) -> Score:
        """Score what ``full`` returned; every process must call it and does its part.

        Args:
            full: the calibrated full model.
            loss_fn: the mean loss over a batch; None: the session's.
            test: (inputs, labels), or a ``Test`` with metrics; None: the session's. The full model is compared with
                its subnets (``Diagnosis.gap``) only on the session's test set and by the session's loss.

        Raises:
            ValueError: there is no loss or no test set, neither here nor in the session, or one process has one that
                the session does not know of.
        """
        loss_fn, used = loss_fn or self.setup.loss_fn, as_test(test) or self.test
        if loss_fn is None or used is None:
            raise ValueError("score(): no loss_fn or no test set; give both here, or to the session")
        if used is not self.test and isinstance(used, Test) and used.held_by == "one":
            raise ValueError("score(): the session must know of a test set with held_by='one'; give it to Session")
        own = used is self.test and loss_fn == self.setup.loss_fn
        score = score_full_model(self.setup, self.state, full, loss_fn, used, self._observer.probe if own else None)
        if own and self._round is not None:
            self._round.diagnosis = self._observer.add_score(self._round.diagnosis, score)
            self._round.score = score
        if own:
            self._callbacks.evaluate(score, full)
        return score

    def export(
        self,
        full: FullModel,
        folder: Path | str,
        *,
        shard_bytes: int | None = SHARD_BYTES,
        format: ExportFormat = "safetensors",
    ) -> None:
        """Write what ``full`` returned to files in ``folder``, tensor by tensor; every process must call it.

        Args:
            full: the calibrated full model.
            folder: made if it is missing; an earlier export there is replaced.
            shard_bytes: the most bytes per safetensors file, unless a single tensor has more; None: one file.
            format: ``"safetensors"`` as Hugging Face lays them out, or ``"dcp"`` for ``torch.distributed.checkpoint``.
        """
        runtime = self.setup.runtime
        runtime.at(self.state.round - 1, "export")
        export(full, Path(folder), first=runtime.rank == 0, shard_bytes=shard_bytes, format=format)
        runtime.total(torch.zeros(1))  # wait until all is written
