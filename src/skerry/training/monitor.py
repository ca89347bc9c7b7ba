"""Watch a session: gather what ``diagnosis.py`` needs, in every process alike, for a small part of a round's cost.

On the wire go at most 128 numbers of the subnets' outputs and 128 of what all workers hold, each summed over workers,
and a few counts: about 2 KB a look. The probe has half as many samples as a round has local steps (at most 64): its
forward is 1 / (6 b) of a round's operations for batches of b, a training step being three forwards.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from skerry.checkpoint.state import State
from skerry.exchange.owners import held_by_all
from skerry.model.inputs import Inputs, call, map_tensors, tensors_of, to
from skerry.randomness import generator
from skerry.training import diagnosis
from skerry.training.diagnosis import Diagnosis, TheoryWarning
from skerry.training.loop import Loop
from skerry.training.worker import LossFn, Worker

STEPS_BETWEEN = 20
"""Local steps from one look at the workers to the next: where a round has fewer, not every round is looked at."""
MOST_SAMPLES = 64
MOST_NUMBERS = 128
"""Coordinates that an identity is measured on: it holds on any of them."""
MOST_CLASSES = 4096


class Watch:
    """What is known of a training beside its losses. Every process must make the same calls.

    Args:
        loop: the steps of a round.
        loss_fn: the loss; None only without ``test``.
        test: (inputs, labels) of which the probe is taken, one in so many; None: outputs are not looked at.
        batch_size: the most samples that a forward may have.
        resumed: whether there were rounds before; drift and scale are judged from the beginning only.

    Attributes:
        probe: the numbers of the probe's samples in the test set, int64; None without one.
    """

    def __init__(
        self,
        loop: Loop,
        loss_fn: LossFn | None,
        test: tuple[Inputs, Tensor] | None,
        batch_size: int,
        *,
        resumed: bool = False,
    ) -> None:
        self._loop, self._loss_fn, self._resumed = loop, loss_fn, resumed
        self.probe: Tensor | None = None
        if test is not None:
            num = min(len(test[1]), max(1, loop.algorithm.local_steps // 2), batch_size, MOST_SAMPLES)
            self.probe = probe = torch.arange(num) * (len(test[1]) // num)
            picked = (map_tensors(lambda t: t[probe.to(t.device)], half) for half in test)
            self._inputs, self._labels = (to(half, loop.device) for half in picked)
        self._trained = {n: p for n, p in loop.model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self._whole: Tensor | None = None  # which units every worker holds
        self._never: float | None = None
        self._counts: dict[int, Tensor] | None = {}  # until the first round is over
        self._moves, self._judged = (0.0, 0.0), 0  # sums over the rounds in which enough is shared, and how many
        self._first_loss = math.inf  # of the subnets
        self._losses: list[tuple[float, float]] = []  # of subnets and full model, where something is dealt out
        self._said: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._outputs, self._moved = list[Tensor](), list[Tensor]()
        self._loss, self._num_shared, self._num_weights = 0.0, 0.0, 0.0

    def begin(self, worker: Worker) -> None:
        """Note where a worker begins its local steps; in the first round ask it for its labels."""
        if self._counts is not None:
            worker.on_labels = self._count
        if not self._looks(worker.round):
            return
        now = self._loop.store.assignment
        whole = now.held.all(0)
        if self._whole is None or not torch.equal(whole, self._whole):
            self._whole, self._deals = whole, not bool(whole.all())
            shared = held_by_all(self._loop.plan, self._trained, now, now)
            self._places = _places(shared, self._trained)
            self._shared = sum(self._trained[name].numel() for name in shared)
        self._num_shared += self._shared
        parameters = (p for group in worker.optimizer.param_groups for p in group["params"])
        self._num_weights += sum(p.numel() for p in parameters if p.requires_grad)
        self._tensors = [worker.narrow.get_parameter(name).detach() for name, _ in self._places]
        self._began = self._read()

    @torch.no_grad()
    def end(self, worker: Worker) -> None:
        """Look at a worker after its local steps; at nothing of one whose piece will be refused."""
        if not self._looks(worker.round):
            return
        moved = self._read() - self._began
        self._tensors = []  # their memory is the worker's
        if not math.isfinite(worker.loss) or not _finite(moved):
            return
        self._moved.append(moved)
        if self.probe is None or self._loss_fn is None:
            return
        output = call(worker.narrow.eval(), self._inputs)  # it will not be trained any more
        loss = float(self._loss_fn(output, self._labels))
        numbers = next(tensors_of(output)).reshape(-1)
        numbers = numbers[_some("outputs", len(numbers)).to(numbers.device)].cpu().double()
        if math.isfinite(loss) and _finite(numbers):
            self._outputs.append(numbers)
            self._loss += loss

    def measured(self, state: State) -> Diagnosis:
        """Return what was seen in the round whose pieces have just been exchanged, and warn of what is new."""
        num_workers, left = self._loop.algorithm.partition.num_workers, self._loop.num_rounds - state.round
        found = Diagnosis(
            least_trained=int(state.trained.min()) if len(state.trained) else None,
            mean_trained=float(state.trained.double().mean()) if len(state.trained) else None,
            rounds_left=left,
            label_skew=self._label_skew(self._counts, num_workers) if self._counts is not None else None,
        )
        self._counts = None
        if self._looks(state.round - 1):
            found = self._add_up(found)
        told = {
            "drift": diagnosis.warn_of_drift(*self._moves, self._judged, num_workers),
            "label skew": diagnosis.warn_of_skew(found.label_skew, num_workers),
            "coverage": diagnosis.warn_of_coverage(self._never_trained(state), left),
        }
        return self._warn(found, told)

    def scored(self, found: Diagnosis, full_loss: float) -> Diagnosis:
        """Return ``found`` with the full model's loss on the probe, and warn if that is new."""
        found = replace(found, full_loss=full_loss)
        if found.subnet_loss is not None and self._deals:
            self._losses.append((found.subnet_loss, full_loss))
        return self._warn(found, {"scale": diagnosis.warn_of_scale(self._losses, self._first_loss)})

    def _looks(self, round: int) -> bool:
        """Whether workers are looked at in ``round``."""
        steps, last = self._loop.algorithm.local_steps, self._loop.num_rounds - 1
        return round in (0, last) or (round + 1) * steps // STEPS_BETWEEN > round * steps // STEPS_BETWEEN

    def _add_up(self, found: Diagnosis) -> Diagnosis:
        """Add what was seen of the workers up over all processes."""
        sums = torch.tensor([self._loss, self._num_shared, self._num_weights], dtype=torch.float64)
        rows = [_row(self._outputs), _row(self._moved), sums]
        # All three at once: what it costs on a slow link is the way there and back.
        outputs, moves, sums = torch.split(self._loop.runtime.total(torch.cat(rows)), [len(row) for row in rows])
        self._clear()
        num_looked, (loss, shared, weights) = float(outputs[0]), sums.tolist()
        of_outputs, of_moves = _squares(outputs), _squares(moves)
        # One local step averages gradients, wherever workers go; with overlap moves have a part of the last round's.
        judged = self._loop.algorithm.local_steps > 1 and not self._loop.algorithm.overlap and not self._resumed
        judged = judged and shared >= diagnosis.SHARED_OF_SUBNET * weights
        if of_moves is not None and judged and self._judged < diagnosis.MOST_DRIFT_ROUNDS:
            self._moves, self._judged = (self._moves[0] + of_moves[0], self._moves[1] + of_moves[1]), self._judged + 1
        subnet_loss = loss / num_looked if num_looked else None
        if subnet_loss is not None and math.isinf(self._first_loss) and not self._resumed:
            self._first_loss = subnet_loss
        return replace(
            found,
            dispersion=diagnosis.dispersion(*of_outputs) if of_outputs else None,
            subnet_loss=subnet_loss,
            drift=diagnosis.drift(*of_moves) if of_moves else None,
        )

    def _warn(self, found: Diagnosis, told: Mapping[str, str | None]) -> Diagnosis:
        """Warn, in the first process, of the kinds that have not been told of yet."""
        new = {kind: text for kind, text in told.items() if text is not None and kind not in self._said}
        self._said |= set(new)
        for text in new.values() if self._loop.runtime.rank == 0 else ():
            warnings.warn(text, TheoryWarning, stacklevel=4)
        return replace(found, warnings={**found.warnings, **new})

    def _read(self) -> Tensor:
        """Return what the worker has of the elements that are looked at, float64."""
        parts = [t.reshape(-1)[at.to(t.device)] for t, (_, at) in zip(self._tensors, self._places, strict=True)]
        return torch.cat(parts).cpu().double() if parts else torch.empty(0, dtype=torch.float64)

    def _count(self, worker: Worker, labels: Any) -> None:
        """Count a step's labels, where these are classes."""
        classes = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
        if classes and self._counts is not None:
            new = labels.detach().cpu().long()
            new = new[(new >= 0) & (new < MOST_CLASSES)].bincount(minlength=MOST_CLASSES)
            self._counts[worker.number] = self._counts.get(worker.number, 0) + new

    def _label_skew(self, counts: Mapping[int, Tensor], num_workers: int) -> float | None:
        """Return the mean over workers; None unless all of them have labels that are classes."""
        own = [each for each in counts.values() if each.any()]
        total, none = self._loop.runtime.total, torch.zeros(MOST_CLASSES + 1, dtype=torch.float64)
        sums = total(sum((torch.cat([torch.ones(1), each / each.sum()]) for each in own), none))
        skews = [diagnosis.label_skew(each, sums[1:] / num_workers) for each in own]
        skew = float(total(torch.tensor(sum(skews), dtype=torch.float64))) / num_workers
        return skew if int(sums[0]) == num_workers else None

    def _never_trained(self, state: State) -> float:
        """Return the fraction of units that nobody holds in any round; refused pieces are another matter."""
        if self._never is None and bool((state.trained == 0).any()):
            unheld, possible = torch.ones_like(state.trained, dtype=torch.bool), self._loop.share(state.round) > 0
            for round in range(self._loop.num_rounds):  # also those to come are known
                unheld &= ~self._loop.assignment(round).held.any(0)
                if not bool((unheld & possible).any()):
                    break
            self._never = float(unheld.double().mean())
        return self._never or 0.0


def _finite(vector: Tensor) -> bool:
    return math.isfinite(float(vector.sum()))


def _row(vectors: Sequence[Tensor]) -> Tensor:
    """Return number, sum of squares and sum of vectors of at most ``MOST_NUMBERS``, float64, to be added up."""
    row = torch.zeros(2 + MOST_NUMBERS, dtype=torch.float64)
    row[0] = len(vectors)
    for vector in vectors:
        row[1] += vector.square().sum()
        row[2 : 2 + len(vector)] += vector
    return row


def _squares(row: Tensor) -> tuple[float, float] | None:
    """Return the square of the mean and the mean of the squares; None where there are fewer than two vectors."""
    count, squares, vector = float(row[0]), float(row[1]), row[2:]
    return (float((vector / count).square().sum()), squares / count) if count > 1 else None


@cache
def _some(name: str, num: int) -> Tensor:
    """Return at most ``MOST_NUMBERS`` of the numbers below ``num``, the same ones whoever asks for ``name``."""
    return (
        torch.arange(num)
        if num <= MOST_NUMBERS
        else torch.randint(num, (MOST_NUMBERS,), generator=generator("watch", name))
    )


def _places(names: list[str], sizes: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return elements of the tensors ``names``: the name and places in the flat tensor."""
    picked, begin = _some("moves", sum(sizes[name].numel() for name in names)), 0
    places = []
    for name in names:
        end = begin + sizes[name].numel()
        places.append((name, picked[(picked >= begin) & (picked < end)] - begin))
        begin = end
    return [(name, at) for name, at in places if len(at)]
