"""The steps of one round, the same for every algorithm and runtime: train, exchange, aggregate; and to evaluate."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.checkpoint.state import State
from skerry.merge.aggregate import is_finite
from skerry.merge.calibrate import estimate_batch_norm_
from skerry.merge.outer import OUTER
from skerry.model import optimizer_state
from skerry.model.inputs import Inputs, call, map_tensors, to
from skerry.model.tensors import named_tensors
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.randomness import seed_of
from skerry.runtimes.runtime import FullModel, Handover, Report, Runtime, Store
from skerry.training.diagnosis import Diagnosis
from skerry.training.evaluate import Metric, Score, evaluate
from skerry.training.record import Record
from skerry.training.schedules import Schedule
from skerry.training.worker import LossFn, OptimizerFn, Worker


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What stays the same from round to round, and the steps of a round."""

    model: nn.Module
    plan: Plan
    algorithm: Algorithm
    optimizer: OptimizerFn
    num_rounds: int
    schedule: Schedule
    seed: int
    runtime: Runtime
    store: Store
    start: Mapping[str, Tensor]
    unwatched: frozenset[str]
    device: torch.device

    def assignment(self, round: int) -> Assignment:
        """Who holds what; after the last round nothing changes hands any more."""
        return self.algorithm.partition.assign(self.plan.axes, min(round, self.num_rounds - 1))

    def share(self, round: int) -> Tensor:
        """For each unit the chance that a subnet had it in the rounds up to ``round``."""
        return self.algorithm.partition.share(self.plan.axes, max(0, round - 1))

    @contextmanager
    def local(self, state: State, worker: int, handed: list[Handover]) -> Iterator[Worker]:
        """Lend a worker for its local steps, with a random state of its own; then add to ``handed`` what it has made.

        Args:
            state: of the training.
            worker: which.
            handed: gets what it hands over, unless an exception ends its steps.
        """
        round, steps = state.round, self.algorithm.local_steps
        self.runtime.at(round, "local steps")
        subnet, of_optimizer = self.store.subnet(worker)
        optimizer = self.optimizer(subnet.parameters())
        travels = self.algorithm.optimizer_state == "travel"
        outer = self.algorithm.outer
        kept = self.store.kept.get(worker, {})
        keeps = outer.begin(subnet, kept) if outer else {}
        if travels or self.algorithm.optimizer_state == "stay":
            own = {name: t for name, t in kept.items() if not name.startswith(OUTER)}
            optimizer_state.load_(optimizer, subnet, {**of_optimizer, **own})
        around = self.runtime.synchronized(subnet) if self.algorithm.synchronous else None
        if not self.algorithm.overlap:  # resumed without, after a round with
            self._correct(worker, subnet)
        factors = [self.schedule((round + step / steps) / self.num_rounds) for step in range(steps)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "local", worker, round))
            lent = Worker(
                subnet, optimizer, factors, number=worker, round=round, around=around, on_step=self._on_step
            )  # fmt: skip
            yield lent
        lent.check_done()
        del lent.subnet, lent.narrow, lent.optimizer, around  # whoever keeps the worker must not keep their memory
        tensors = named_tensors(subnet)
        if travels:
            tensors |= optimizer_state.read(optimizer, subnet, self.start)
            self.check_state(tensors)
        stays = self.algorithm.optimizer_state == "stay"
        of_own = optimizer_state.read(optimizer, subnet, self.start) if stays else {}
        good = self.is_good(lent.loss, {**tensors, **of_own})
        if good:  # a refused worker's optimizer begins afresh
            keeps |= of_own
        if outer and good:
            outer.end_(subnet, keeps)
        self.store.kept[worker] = keeps
        del optimizer
        handed.append(Handover(tensors, Report(worker, good, lent.loss, lent.flop, lent.local_s)))

    def _on_step(self, worker: Worker, done: int) -> None:
        if done == self.algorithm.overlap:
            self._correct(worker.number, worker.narrow)

    @torch.no_grad()
    def _correct(self, worker: int, subnet: nn.Module) -> None:
        """Add to the parameters what the last exchange left to arrive late."""
        parameters = named_tensors(subnet)
        for name, missing in self.store.late(worker):
            parameters[name].add_(missing)

    def exchange(self, state: State, handed: list[Handover]) -> tuple[tuple[int, ...], float]:
        """End the round; return the workers whose pieces were refused and the mean training loss."""
        runtime, store, now = self.runtime, self.store, self.store.assignment
        then, sent = self.assignment(state.round + 1), store.bytes_sent
        if self.algorithm.keeps and not torch.equal(now.held, then.held):
            raise ValueError(
                f"'{self.algorithm.name}': optimizer_state='stay' and an outer optimizer are for workers that keep "
                "their units; deal nothing again (reshuffle=0), or use 'reset' or 'travel'"
            )
        runtime.at(state.round, "exchange")
        overlap = self.algorithm.overlap > 0 and state.round + 1 < self.num_rounds
        reports = store.exchange(handed, then, overlap=overlap)

        good = [r for r in reports if r.good]
        state.trained += now.held[[r.worker for r in good]].sum(0)
        state.round += 1
        state.bad_rounds = 0 if len(good) == len(reports) else state.bad_rounds + 1
        state.totals["local_s"] += sum(r.local_s for r in reports) / runtime.num_processes
        state.totals["flop"] += sum(r.flop for r in reports) / len(reports)
        state.totals["bytes_sent"] += store.bytes_sent - sent
        state.totals["bytes_due"] += sum(r.bytes_due for r in reports) / len(reports)
        if self.algorithm.synchronous:
            of_gradients = self.algorithm.local_steps * self.gradient_bytes(now.num_workers)
            state.totals["bytes_sent"] += of_gradients
            state.totals["bytes_due"] += of_gradients
        loss = sum(r.loss for r in good) / len(good) if good else math.nan
        return tuple(r.worker for r in reports if not r.good), loss

    def gradient_bytes(self, num_workers: int) -> float:
        """What a worker sends to average gradients once: 2 (n - 1) / n of their size, as in a ring."""
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return 2 * (num_workers - 1) / num_workers * trained

    def check_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse optimizer state that has units in it but not the shape of its parameter: nobody could cut it."""
        for name, tensor in tensors.items():
            owner, _, key = name.partition(optimizer_state.SEPARATOR)
            cut_smaller = tensors[owner].shape != self.plan.shapes[owner]
            if key and cut_smaller and tensor.dim() and tensor.shape != tensors[owner].shape:
                raise ValueError(
                    f"optimizer state '{key}' of {owner} has shape {tuple(tensor.shape)}, expected "
                    f"{tuple(tensors[owner].shape)} to travel with its units; use optimizer_state='reset'"
                )

    def is_good(self, loss: float, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a worker's loss, weights, statistics and momenta are finite."""
        watched = {n: t for n, t in tensors.items() if optimizer_state.parameter_of(n) not in self.unwatched}
        return math.isfinite(loss) and is_finite(watched)

    def stop_if_failed(self, state: State, max_bad_rounds: int, refused: tuple[int, ...] = ()) -> None:
        """Raise TrainingFailed after too many rounds in a row with a refused piece, or if no round was without."""
        if state.bad_rounds >= min(max_bad_rounds, self.num_rounds):
            who = f" (last of worker {', '.join(map(str, refused))})" if refused else ""
            raise TrainingFailed(
                f"round {state.round - 1}: pieces that are not finite were refused in {state.bad_rounds} rounds in a "
                f"row{who}; start anew with a lower learning rate, or check the data"
            )

    def full(self, state: State, inputs: Sequence[Inputs]) -> FullModel:
        """Return the calibrated full model; ``inputs`` of this process's workers, to measure batch norms with."""
        started = time.perf_counter()
        self.runtime.at(max(0, state.round - 1), "evaluation")
        share = self.share(state.round)
        full = self.store.full(share)
        if bool((share < 1).any()):
            found = [to(x, self.device) for x in inputs]
            estimate_batch_norm_(full.module, lambda m: [call(m, x) for x in found], self.runtime.total)
        state.totals["evaluate_s"] += time.perf_counter() - started
        return full

    def score(
        self,
        state: State,
        full: FullModel,
        loss_fn: LossFn,
        test: tuple[Inputs, Tensor],
        metrics: Mapping[str, Metric],
        batch_size: int,
        probe: Tensor | None = None,
    ) -> Score:
        """Score the full model, and of it the samples with the numbers ``probe``; every process does its part."""
        started = time.perf_counter()
        runtime = self.runtime
        runtime.at(max(0, state.round - 1), "evaluation")
        mine = slice(runtime.rank, None, runtime.num_processes)
        largest_part = len(test[1][:: runtime.num_processes])
        in_probe = torch.zeros(len(test[1]), dtype=torch.bool)
        if probe is not None:
            in_probe[probe] = True
        score = evaluate(
            full.module,
            loss_fn,
            (self._some(test[0], mine), self._some(test[1], mine)),
            metrics=metrics,
            batch_size=batch_size,
            num_batches=math.ceil(largest_part / batch_size),
            example=self._some(test[0], slice(1)),
            probe=in_probe[mine],
            total=runtime.total,
        )
        state.totals["evaluate_s"] += time.perf_counter() - started
        return score

    def _some(self, value: Inputs, part: slice) -> Any:
        """Return these samples, where training is."""
        return to(map_tensors(lambda tensor: tensor[part], value), self.device)

    def record(
        self, state: State, refused: tuple[int, ...], train_loss: float, score: Score | None, diagnosis: Diagnosis
    ) -> Record:
        """The figures of the round that has just ended."""
        return Record(
            round=state.round - 1,
            train_loss=train_loss,
            rate_factor=self.schedule((state.round - 1) / self.num_rounds),
            score=score,
            refused=refused,
            units_covered=float((state.trained > 0).double().mean()) if len(state.trained) else 1.0,
            totals=dict(state.totals),
            diagnosis=diagnosis,
        )
