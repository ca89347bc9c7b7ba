"""The steps of one round, the same for every algorithm and runtime: train, exchange, aggregate; and to evaluate."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from skerry import cost, optimizer_state
from skerry.aggregate import is_finite
from skerry.algorithm import Algorithm
from skerry.calibrate import estimate_batch_norm_
from skerry.evaluate import Metric, Score, evaluate
from skerry.inputs import Inputs, call, tensors_of, to
from skerry.local import Data, LossFn, OptimizerFn, local_steps
from skerry.outer import OUTER
from skerry.partition import Assignment
from skerry.plan import Plan, named_tensors
from skerry.randomness import seed_of
from skerry.runtimes import FullModel, Handover, Report, Runtime, Store
from skerry.schedule import Schedule
from skerry.state import Record, State
from skerry.subnet import extract

CALIBRATION_SAMPLES = 2048


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What stays the same from round to round, and the steps of a round."""

    model: nn.Module
    loss_fn: LossFn
    data: Data
    plan: Plan
    algorithm: Algorithm
    optimizer: OptimizerFn
    num_rounds: int
    schedule: Schedule
    seed: int
    test: tuple[Tensor, Tensor] | None
    metrics: Mapping[str, Metric]
    calibration_samples: int
    runtime: Runtime
    store: Store
    eval_batch_size: int
    start: Mapping[str, Tensor]
    unwatched: frozenset[str]
    device: torch.device
    step_costs: dict[tuple[torch.Size, ...], cost.StepCost] = field(default_factory=dict)

    def assignment(self, round: int) -> Assignment:
        """Who holds what; after the last round nothing changes hands any more."""
        return self.algorithm.partition.assign(self.plan.axes, min(round, self.num_rounds - 1))

    def share(self, round: int) -> Tensor:
        """For each unit the chance that a subnet had it in the rounds up to ``round``."""
        return self.algorithm.partition.share(self.plan.axes, max(0, round - 1))

    def train_round(self, state: State) -> tuple[tuple[int, ...], float]:
        """Do one round; return the workers whose pieces were refused and the mean training loss."""
        runtime, store, now = self.runtime, self.store, self.store.assignment
        runtime.at(state.round, "local steps")
        mine = [self.train_worker(state, w) for w in runtime.mine(now.num_workers)]
        then, sent = self.assignment(state.round + 1), store.bytes_sent
        keeps = self.algorithm.optimizer_state == "stay" or self.algorithm.outer is not None
        if keeps and not torch.equal(now.held, then.held):
            raise ValueError(
                f"'{self.algorithm.name}': optimizer_state='stay' and an outer optimizer are for workers that keep "
                "their units; deal nothing again (reshuffle=0), or use 'reset' or 'travel'"
            )
        runtime.at(state.round, "exchange")
        overlap = self.algorithm.overlap > 0 and state.round + 1 < self.num_rounds
        reports = store.exchange(mine, then, overlap=overlap)

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
        return tuple(r.worker for r in reports if not r.good), sum(r.loss for r in good) / len(
            good
        ) if good else math.nan

    def train_worker(self, state: State, worker: int) -> Handover:
        """Train the worker's subnet and return what it hands over."""
        round, steps = state.round, self.algorithm.local_steps
        subnet, of_optimizer = self.store.subnet(worker)
        optimizer = self.optimizer(subnet.parameters())
        travels = self.algorithm.optimizer_state == "travel"
        outer = self.algorithm.outer
        kept = self.store.kept.get(worker, {})
        keeps = outer.begin(subnet, kept) if outer else {}
        if travels or self.algorithm.optimizer_state == "stay":
            own = {name: t for name, t in kept.items() if not name.startswith(OUTER)}
            optimizer_state.load_(optimizer, subnet, {**of_optimizer, **own})
        module = self.runtime.synchronized(subnet) if self.algorithm.synchronous else subnet
        batches = ((to(x, self.device), to(y, self.device)) for x, y in self.data.batches(worker, round * steps, steps))
        factors = (self.schedule((round + step / steps) / self.num_rounds) for step in range(steps))
        waited = 0.0

        def on_step(done: int) -> None:
            nonlocal waited
            if done == self.algorithm.overlap:
                began = time.perf_counter()
                parameters = named_tensors(subnet)
                with torch.no_grad():
                    for name, missing in self.store.late(worker):
                        parameters[name].add_(missing)
                waited = time.perf_counter() - began

        on_step(0)  # resumed without overlap, after a round with
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "local", worker, round))
            started = time.perf_counter()
            try:
                loss = local_steps(module, self.loss_fn, batches, optimizer, factors, on_step)
            except Exception as error:  # of the model, the loss or the data, which the user knows
                with suppress(Exception):
                    error.add_note(f"(worker {worker}, round {round}, {self._batch_in_words(worker, round * steps)})")
                raise
            local_s = time.perf_counter() - started - (waited if self.algorithm.overlap else 0.0)
        optimizer.zero_grad()  # gradients are not needed any more, and their memory is
        tensors = named_tensors(subnet)
        if travels:
            tensors |= optimizer_state.read(optimizer, subnet, self.start)
            self.check_state(tensors)
        good = self.is_good(loss, tensors)
        if self.algorithm.optimizer_state == "stay" and good:  # a refused worker's begins afresh
            keeps |= optimizer_state.read(optimizer, subnet, self.start)
        if outer and good:
            outer.end_(subnet, keeps)
        self.store.kept[worker] = keeps
        flop = float(self.step_cost(worker, subnet).flop * steps)
        return Handover(tensors, Report(worker, good, loss, flop, local_s))

    def gradient_bytes(self, num_workers: int) -> float:
        """What a worker sends to average gradients once: 2 (n - 1) / n of their size, as in a ring."""
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return 2 * (num_workers - 1) / num_workers * trained

    def _batch_in_words(self, worker: int, step: int) -> str:
        (batch,) = self.data.batches(worker, step, 1)
        x, y = ([f"{t.dtype} {tuple(t.shape)}" for t in tensors_of(part)] for part in batch)
        return f"its first batch: inputs {', '.join(x)}, labels {', '.join(y)}"

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

    def tell_refused(self, state: State, refused: tuple[int, ...]) -> None:
        """Warn where nobody looks at records."""
        if refused:
            who = ", ".join(map(str, refused))
            warnings.warn(f"round {state.round - 1}: refused the piece of worker {who} (not finite)", stacklevel=3)

    def is_good(self, loss: float, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a worker's loss, weights, statistics and momenta are finite."""
        watched = {n: t for n, t in tensors.items() if optimizer_state.parameter_of(n) not in self.unwatched}
        return math.isfinite(loss) and is_finite(watched)

    def stop_if_failed(self, state: State, max_bad_rounds: int, refused: tuple[int, ...] = ()) -> None:
        """Raise TrainingFailed after too many rounds in a row with a refused piece."""
        if state.bad_rounds >= max_bad_rounds:
            who = f" (last of worker {', '.join(map(str, refused))})" if refused else ""
            raise TrainingFailed(
                f"round {state.round - 1}: pieces that are not finite were refused in {state.bad_rounds} rounds in a "
                f"row{who}; start anew with a lower learning rate, or check the data"
            )

    def evaluate(self, state: State) -> tuple[FullModel, Score | None]:
        """Calibrate the full model and score it; every process does its part."""
        started = time.perf_counter()
        runtime = self.runtime
        runtime.at(max(0, state.round - 1), "evaluation")
        assignment = self.assignment(max(0, state.round - 1))
        share = self.share(state.round)
        full = self.store.full(share)
        if bool((share < 1).any()):
            found = calibration_inputs(self.data, runtime.mine(assignment.num_workers), self.calibration_samples)
            inputs = [to(x, self.device) for x in found]
            estimate_batch_norm_(full.module, lambda m: [call(m, x) for x in inputs], runtime.total)
        score = None
        if self.test is not None:
            mine = slice(runtime.rank, None, runtime.num_processes)
            largest_part = len(self.test[1][:: runtime.num_processes])
            score = evaluate(
                full.module,
                self.loss_fn,
                (to(self.test[0][mine], self.device), to(self.test[1][mine], self.device)),
                metrics=self.metrics,
                batch_size=self.eval_batch_size,
                num_batches=math.ceil(largest_part / self.eval_batch_size),
                example=to(self.test[0][:1], self.device),
                total=runtime.total,
            )
        state.totals["evaluate_s"] += time.perf_counter() - started
        return full, score

    def record(self, state: State, refused: tuple[int, ...], train_loss: float, score: Score | None) -> Record:
        """The figures of the round that has just ended."""
        return Record(
            round=state.round - 1,
            train_loss=train_loss,
            rate_factor=self.schedule((state.round - 1) / self.num_rounds),
            score=score,
            refused=refused,
            units_covered=float((state.trained > 0).double().mean()) if len(state.trained) else 1.0,
            totals=dict(state.totals),
        )

    def step_cost(self, worker: int, subnet: nn.Module | None = None) -> cost.StepCost:
        """What a local step costs ``worker``; counted once for each size of subnet, on a batch of a worker of ours."""
        subnet = subnet or extract(self.model, self.plan, self.assignment(0).units(worker))
        key = tuple(t.shape for t in subnet.parameters())
        if key not in self.step_costs:
            (batch,) = self.data.batches(self.runtime.mine(self.algorithm.partition.num_workers)[0], 0, 1)
            found = cost.step_cost(subnet, self.loss_fn, batch, self.optimizer)
            of_outer = 2 * found.gradients if self.algorithm.outer else 0  # where the round began, and the momentum
            self.step_costs[key] = replace(found, optimizer=found.optimizer + of_outer)
        return self.step_costs[key]


def calibration_inputs(data: Data, workers: Sequence[int], num: int = CALIBRATION_SAMPLES) -> list[Inputs]:
    """Return inputs of ``workers``, of ``num`` over all workers, to estimate batch-norm statistics with."""
    inputs = [data.sample(w, max(1, num // data.num_workers)) for w in workers]
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    # One batch where it can be: other batching, other statistics of later layers.
    return [torch.cat(tensors)] if len(tensors) == len(inputs) else inputs
