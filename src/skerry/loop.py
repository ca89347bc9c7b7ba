"""The steps of one round, the same for every algorithm and runtime: train, exchange, aggregate; and to evaluate."""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skerry import cost, optimizer_state
from skerry.aggregate import aggregate_, is_finite
from skerry.algorithm import Algorithm
from skerry.calibrate import calibrate
from skerry.evaluate import Score, evaluate
from skerry.inputs import call, to
from skerry.local import Data, LossFn, OptimizerFn, local_steps
from skerry.partition import Assignment
from skerry.plan import Plan, named_tensors
from skerry.randomness import seed_of
from skerry.runtimes import Handover, Runtime
from skerry.schedule import Schedule
from skerry.state import Record, State
from skerry.subnet import cut_of, cut_shape, cuts, extract, take


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
    calibration_samples: int
    runtime: Runtime
    start: Mapping[str, Tensor]
    watched: frozenset[str]
    step_costs: dict[tuple[torch.Size, ...], cost.StepCost] = field(default_factory=dict)

    def assignment(self, round: int) -> Assignment:
        """Who holds what; after the last round nothing changes hands any more."""
        return self.algorithm.partition.assign(self.plan.axes, min(round, self.num_rounds - 1))

    def train_round(self, state: State) -> tuple[tuple[int, ...], float]:
        """Do one round on ``state``; return the workers whose pieces were refused and the mean training loss."""
        round, runtime = state.round, self.runtime
        runtime.begin(round)
        assignment = self.assignment(round)
        mine = [self.train_worker(state, assignment, w) for w in runtime.mine(assignment.num_workers)]
        like = mine[0].tensors
        sent = runtime.bytes_sent
        full = self.full_size(state, like)
        handovers = runtime.exchange(mine, lambda w: self.expected(assignment, w, full), assignment.num_workers)
        pieces = [h.tensors if self.is_good(h) else None for h in handovers]
        for name, size in full.items():
            if name not in state.tensors:  # optimizer state appears with the first step
                blank = torch.zeros(size.shape, dtype=size.dtype, device=next(iter(like.values())).device)
                at_start = self.start.get(name.rpartition(optimizer_state.SEPARATOR)[2])
                state.tensors[name] = blank if at_start is None else blank + at_start.to(blank).view(())
        aggregate_(state.tensors, self.plan, assignment, pieces)

        good = [h for h, piece in zip(handovers, pieces, strict=True) if piece is not None]
        state.trained += assignment.held[[h.worker for h in good]].sum(0)
        state.round += 1
        state.bad_rounds = 0 if len(good) == len(handovers) else state.bad_rounds + 1
        state.totals["local_s"] += sum(h.local_s for h in handovers) / runtime.num_processes
        state.totals["flop"] += sum(h.flop for h in handovers) / len(handovers)
        state.totals["bytes_sent"] += runtime.bytes_sent - sent
        if runtime.rank == 0:  # needed for the record only
            due = cost.due_bytes(self.plan, state.tensors, assignment, self.assignment(round + 1))
            state.totals["bytes_due"] += due
        refused = tuple(h.worker for h, piece in zip(handovers, pieces, strict=True) if piece is None)
        return refused, sum(h.loss for h in good) / len(good) if good else math.nan

    def train_worker(self, state: State, assignment: Assignment, worker: int) -> Handover:
        """Cut the worker's subnet out, train it, and return what it hands over."""
        round, steps = state.round, self.algorithm.local_steps
        units = assignment.units(worker)
        subnet = extract(self.model, self.plan, units)
        optimizer = self.optimizer(subnet.parameters())
        travels = self.algorithm.optimizer_state == "travel"
        if travels:
            by_name = cuts(self.plan, units)
            of_optimizer = {n: t for n, t in state.tensors.items() if optimizer_state.SEPARATOR in n}
            found = {n: cut_of(self.plan, by_name, n, t.shape) for n, t in of_optimizer.items()}
            mine = {n: take(of_optimizer[n], cut) for n, cut in found.items() if cut is not None}
            optimizer_state.load_(optimizer, subnet, mine)
        batches = ((to(x, self.device), to(y, self.device)) for x, y in self.data.batches(worker, round * steps, steps))
        factors = (self.schedule((round + step / steps) / self.num_rounds) for step in range(steps))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "local", worker, round))
            started = time.perf_counter()
            loss = local_steps(subnet, self.loss_fn, batches, optimizer, factors)
            local_s = time.perf_counter() - started
        tensors = named_tensors(subnet)
        if travels:
            tensors |= optimizer_state.read(optimizer, subnet, self.start)
            self.check_state(tensors)
        flop = float(self.step_cost(worker, subnet).flop * steps)
        return Handover(worker, round, tensors, loss, flop, local_s)

    def full_size(self, state: State, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Empty full-size tensors (on the meta device) for all that is exchanged; ``like`` is what a worker here made.

        In an order that is the same everywhere. A block that no worker here holds has the state that others have.
        """
        sizes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.tensors.items()}
        for name, tensor in like.items():
            owner, _, key = name.partition(optimizer_state.SEPARATOR)
            if key:
                own_shape = tensor.shape == like[owner].shape
                of = [n for n, p in self.model.named_parameters() if p.requires_grad] if self.plan.blocks else [owner]
                for other in of:
                    shape = self.plan.shapes[other] if own_shape else tensor.shape
                    sizes[f"{other}{optimizer_state.SEPARATOR}{key}"] = torch.empty(
                        shape, dtype=tensor.dtype, device="meta"
                    )
        return dict(sorted(sizes.items()))

    def expected(self, assignment: Assignment, worker: int, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Empty tensors like those that ``worker`` hands over, derived from the plan."""
        by_name = cuts(self.plan, assignment.units(worker))
        found = {name: cut_of(self.plan, by_name, name, tensor.shape) for name, tensor in full.items()}
        return {
            name: torch.empty(cut_shape(full[name].shape, cut), dtype=full[name].dtype, device="meta")
            for name, cut in found.items()
            if cut is not None
        }

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

    def is_good(self, handover: Handover) -> bool:
        """Whether a worker's loss, weights, statistics and momenta are finite."""
        tensors = {n: t for n, t in handover.tensors.items() if optimizer_state.parameter_of(n) in self.watched}
        return math.isfinite(handover.loss) and is_finite(tensors)

    def stop_if_failed(self, state: State, max_bad_rounds: int, refused: tuple[int, ...] = ()) -> None:
        """Raise TrainingFailed after too many rounds in a row with a refused piece."""
        if state.bad_rounds >= max_bad_rounds:
            who = f" (last of worker {', '.join(map(str, refused))})" if refused else ""
            raise TrainingFailed(
                f"round {state.round - 1}: pieces that are not finite were refused in {state.bad_rounds} rounds in a "
                f"row{who}; start anew with a lower learning rate, or check the data"
            )

    def evaluate(self, state: State) -> tuple[nn.Module, Score | None]:
        """Calibrate the full model and score it; every process does its part."""
        started = time.perf_counter()
        assignment = self.assignment(state.round - 1)
        workers = self.runtime.mine(assignment.num_workers)
        each = max(1, self.calibration_samples // assignment.num_workers)
        inputs = [to(self.data.sample(w, each), self.device) for w in workers]
        if all(isinstance(x, Tensor) for x in inputs):
            inputs = [torch.cat(inputs)]  # one batch: other batching, other statistics of later layers
        total = self.runtime.total
        model = calibrate(self.model, self.plan, assignment.share(), lambda m: [call(m, x) for x in inputs], total)
        score = None
        if self.test is not None:
            mine = slice(self.runtime.rank, None, self.runtime.num_processes)
            score = evaluate(
                model,
                self.loss_fn,
                (to(self.test[0][mine], self.device), to(self.test[1][mine], self.device)),
                total=total,
            )
        state.totals["evaluate_s"] += time.perf_counter() - started
        return model, score

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
            self.step_costs[key] = cost.step_cost(subnet, self.loss_fn, batch, self.optimizer)
        return self.step_costs[key]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device
