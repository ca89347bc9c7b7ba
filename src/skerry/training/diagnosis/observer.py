"""The observer of a session: gathers measures, the same in every process, at a small overhead.

It sends at most 128 numbers of the subnets' outputs and 128 of the workers' moves, each summed over workers, and a few
counts: about 2 KB per round that is measured. The probe has half as many samples as a round has local steps (at most
64), so its forward is 1 / (6 b) of a round's operations for batches of b, a training step being three forwards.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from skerry.checkpoint.state import State
from skerry.exchange.owners import held_by_all
from skerry.model.inputs import call, take, tensors_of, to
from skerry.training.diagnosis import measures, theory_warnings
from skerry.training.diagnosis.judge import Judge
from skerry.training.diagnosis.label_counts import LabelCounts
from skerry.training.diagnosis.measures import Diagnosis
from skerry.training.diagnosis.vector_sums import coordinates, coordinates_of, squares, to_row
from skerry.training.evaluation.evaluate import Score
from skerry.training.evaluation.test_set import Test, named_as_test
from skerry.training.setup import Setup
from skerry.training.worker import Worker

STEPS_BETWEEN = 20
"""Local steps from one round that is measured to the next; shorter rounds are not all measured."""
MAX_PROBE_SAMPLES = 64


class Observer:
    """Measures a session's rounds, for its judge. Every process must make the same calls.

    Args:
        setup: of the session.
        test: where the probe is taken from, evenly spaced; None: outputs are not measured.
        judge: warns.

    Attributes:
        probe: indices of the probe's samples in the test set, int64; None without a test set.
    """

    def __init__(self, setup: Setup, test: Test | None, judge: Judge) -> None:
        self._setup, self._test, self._judge = setup, test, judge
        self.probe: Tensor | None = None
        if test is not None and test.held_by == "all":
            steps, num_samples = setup.algorithm.local_steps, len(test.labels)
            num = min(num_samples, max(1, steps // 2), test.batch_size, MAX_PROBE_SAMPLES)
            self.probe = probe = torch.arange(num) * (num_samples // num)
            picked = (take(half, probe) for half in (test.inputs, test.labels))
            self._inputs, self._labels = (to(half, setup.device) for half in picked)
        self._trained = {n: p for n, p in setup.model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self._on_all: Tensor | None = None  # which units every worker holds
        self._deals = False  # known from the first round that is measured
        self._never_trained: float | None = None
        self._label_counts: LabelCounts | None = LabelCounts()  # until the first round is over
        self._clear()
        self._at_start = judge.before_training()  # in files it belongs to the first round

    def _clear(self) -> None:
        self._outputs, self._moved = list[Tensor](), list[Tensor]()
        self._loss, self._num_shared, self._num_weights = 0.0, 0.0, 0.0

    def begin_worker(self, worker: Worker) -> None:
        """Note where a worker starts its local steps; in the first round, count its labels."""
        if self._label_counts is not None:
            worker.on_labels = self._label_counts.add
        if not self._is_measured(worker.round):
            return
        now = self._setup.store.assignment
        on_all = now.held.all(0)
        if self._on_all is None or not torch.equal(on_all, self._on_all):
            self._on_all, self._deals = on_all, not bool(on_all.all())
            shared = held_by_all(self._setup.plan, self._trained, now, now)
            self._coordinates = coordinates_of(shared, self._trained)
            self._shared = sum(self._trained[name].numel() for name in shared)
        self._num_shared += self._shared
        parameters = (p for group in worker.optimizer.param_groups for p in group["params"])
        self._num_weights += sum(p.numel() for p in parameters if p.requires_grad)
        self._tensors = [worker.narrow.get_parameter(name).detach() for name, _ in self._coordinates]
        self._began = self._read_coordinates()

    @torch.no_grad()
    def end_worker(self, worker: Worker) -> None:
        """Measure a worker after its local steps, unless it will be refused."""
        if not self._is_measured(worker.round):
            return
        moved = self._read_coordinates() - self._began
        self._tensors = []  # else the worker's memory is not freed
        if worker.failed or not _is_finite(moved):
            return
        self._moved.append(moved)
        if self.probe is not None and self._setup.loss_fn is not None:
            with named_as_test(self._inputs, self._labels):
                output = call(worker.narrow.eval(), self._inputs)  # it will not be trained any more
                loss = float(self._setup.loss_fn(output, self._labels))
            numbers = next(tensors_of(output)).reshape(-1)
            numbers = numbers[coordinates("outputs", len(numbers)).to(numbers.device)].cpu().double()
            if math.isfinite(loss) and _is_finite(numbers):
                self._outputs.append(numbers)
                self._loss += loss

    def end_round(self, state: State, train_loss: float, refused: Sequence[int]) -> Diagnosis:
        """Return the measures of the round that has just ended, after its exchange; warn of what is new."""
        setup, start, counts = self._setup, self._at_start, self._label_counts
        self._label_counts, self._at_start, num_workers = None, Diagnosis(), setup.algorithm.partition.num_workers
        compared = num_workers > 1 or setup.algorithm.clients is None  # one client's labels compare with nobody's
        found = Diagnosis(
            least_trained=int(state.trained.min()) if len(state.trained) else None,
            mean_trained=float(state.trained.double().mean()) if len(state.trained) else None,
            rounds_left=setup.num_rounds - state.round,
            label_skew=counts.skew(setup.runtime, num_workers) if counts is not None and compared else None,
            checked=start.checked,
            warnings=start.warnings,
        )
        moves = None
        if self._is_measured(state.round - 1):
            found, moves = self._add_workers(found)
        never = self._fraction_never_trained(state)
        return self._judge.after_round(found, never_trained=never, moves=moves, train_loss=train_loss, refused=refused)

    def add_score(self, found: Diagnosis, score: Score) -> Diagnosis:
        """Return ``found`` with the full model's loss on the probe; warn of what is new in its score."""
        return self._judge.after_score(found, score, dealt=self._deals, most_frequent=self._most_frequent())

    def _is_measured(self, round: int) -> bool:
        steps, last = self._setup.algorithm.local_steps, self._setup.num_rounds - 1
        return round in (0, last) or (round + 1) * steps // STEPS_BETWEEN > round * steps // STEPS_BETWEEN

    def _add_workers(self, found: Diagnosis) -> tuple[Diagnosis, tuple[float, float] | None]:
        """Return ``found`` with what was measured of the workers of all processes, and the moves that drift is of.

        The latter are None where drift is not judged.
        """
        sums = torch.tensor([self._loss, self._num_shared, self._num_weights], dtype=torch.float64)
        rows = [to_row(self._outputs), to_row(self._moved), sums]
        # All in one: on a slow link the round-trip is what costs.
        total = self._setup.runtime.total(torch.cat(rows))
        outputs, moves, sums = torch.split(total, [len(row) for row in rows])
        self._clear()
        num_measured, (loss, shared, weights) = float(outputs[0]), sums.tolist()
        of_outputs, of_moves, algorithm = squares(outputs), squares(moves), self._setup.algorithm
        found = replace(
            found,
            dispersion=measures.dispersion(*of_outputs) if of_outputs else None,
            subnet_loss=loss / num_measured if num_measured else None,
            drift=measures.drift(*of_moves) if of_moves else None,
        )
        # One local step per round averages gradients; with overlap moves contain a part of the last round's.
        judged = algorithm.local_steps > 1 and not algorithm.overlap
        return found, of_moves if judged and shared >= theory_warnings.MIN_SHARED_FRACTION * weights else None

    def _most_frequent(self) -> float | None:
        """Return the frequency of the most frequent class in the test set, None where that is not known."""
        labels = self._test.labels if self._test is not None and self._test.held_by == "all" else None
        if labels is None or labels.dim() != 1 or labels.is_floating_point():
            return None
        labels = labels[labels >= 0]  # others are none
        return float((labels == labels.mode().values).double().mean()) if len(labels) else None

    def _read_coordinates(self) -> Tensor:
        """Return the worker's values at the measured coordinates, float64."""
        pairs = zip(self._tensors, self._coordinates, strict=True)
        parts = [tensor.reshape(-1)[indices.to(tensor.device)] for tensor, (_, indices) in pairs]
        return torch.cat(parts).cpu().double() if parts else torch.empty(0, dtype=torch.float64)

    def _fraction_never_trained(self, state: State) -> float:
        """Return the fraction of units that no worker holds in any round; refused workers do not count."""
        if self._never_trained is None and bool((state.trained == 0).any()):
            unheld = torch.ones_like(state.trained, dtype=torch.bool)
            possible = self._setup.share(state.round).alone > 0
            for round in range(self._setup.num_rounds):  # assignments of rounds to come are known, too
                unheld &= ~self._setup.assignment(round).held.any(0)
                if not bool((unheld & possible).any()):
                    break
            self._never_trained = float(unheld.double().mean())
        return self._never_trained or 0.0


def _is_finite(vector: Tensor) -> bool:
    return math.isfinite(float(vector.sum()))
