"""Watch a training: gather what ``diagnosis.py`` needs, in every process alike, for a small part of a round's cost.

On the wire go at most 128 numbers of the subnets' outputs and 128 of what all workers hold, each summed over workers,
and a few counts: about 1 KB a round. The probe has as many samples as a round has local steps (at most 128): its
forward is 1 / (3 b) of a round's operations for batches of b, a training step being three forwards.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from skerry import diagnosis
from skerry.diagnosis import Diagnosis, TheoryWarning
from skerry.evaluate import Score
from skerry.exchange import held_by_all
from skerry.inputs import Inputs, call, map_tensors, tensors_of, to
from skerry.local import LossFn, Worker
from skerry.loop import Loop
from skerry.partition import Assignment
from skerry.randomness import generator
from skerry.state import State

MOST_SAMPLES = 128
MOST_NUMBERS = 128
"""Coordinates that an identity is measured on: it holds on any of them."""
MOST_CLASSES = 4096


class Watch:
    """What is known of a training beside its losses. Every process must make the same calls.

    Args:
        loop: the steps of a round.
        loss_fn: the loss.
        test: (inputs, labels) of which the probe is taken, one in so many; None: outputs are not looked at.
        batch_size: the most samples that a forward may have.

    Attributes:
        probe: the numbers of the probe's samples in the test set, int64; None without one.
    """

    def __init__(self, loop: Loop, loss_fn: LossFn, test: tuple[Inputs, Tensor] | None, batch_size: int) -> None:
        self._loop, self._loss_fn = loop, loss_fn
        self.probe: Tensor | None = None
        if test is not None:
            num = min(len(test[1]), loop.algorithm.local_steps, batch_size, MOST_SAMPLES)
            self.probe = probe = torch.arange(num) * (len(test[1]) // num)
            picked = (map_tensors(lambda t: t[probe.to(t.device)], half) for half in test)
            self._inputs, self._labels = (to(half, loop.device) for half in picked)
        self._trained = {n: p for n, p in loop.model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self._now: Assignment | None = None
        self._counts: dict[int, Tensor] | None = {}  # until the first round is over
        self._judged: list[tuple[float, float]] = []  # moves, of rounds in which enough is shared
        self._losses: list[tuple[float, float]] = []  # of subnets and full model, where something is dealt out
        self._said: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._outputs, self._moved = _Sum(), _Sum()
        self._loss, self._shared, self._weights = 0.0, 0.0, 0.0

    def begin(self, worker: Worker) -> None:
        """Note where a worker begins its local steps."""
        now = self._loop.store.assignment
        if now is not self._now:  # the same for all workers of a round
            self._now, self._deals = now, not bool(now.held.all())
            shared = held_by_all(self._loop.plan, self._trained, now, now)
            self._places = _places(shared, self._trained)
            self._num_shared = sum(self._trained[name].numel() for name in shared)
        self._shared += self._num_shared
        tensors = dict(worker.narrow.named_parameters())
        self._weights += sum(p.numel() for p in tensors.values() if p.requires_grad)
        self._tensors = [tensors[name].detach() for name, _ in self._places]
        self._began = self._read()

    def batches(self, worker: Worker, batches: Iterable[tuple[Inputs, Any]]) -> Iterator[tuple[Inputs, Any]]:
        """Hand the worker's batches on, and in the first round count their labels, where these are classes."""
        for x, y in batches:
            if self._counts is not None and isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point():
                new = y.detach().cpu().long()
                new = new[(new >= 0) & (new < MOST_CLASSES)].bincount(minlength=MOST_CLASSES)
                self._counts[worker.number] = self._counts.get(worker.number, 0) + new
            yield x, y

    @torch.no_grad()
    def end(self, worker: Worker) -> None:
        """Look at a worker after its local steps; at nothing of one whose piece will be refused."""
        moved = self._read() - self._began
        self._tensors = []  # their memory is the worker's
        if not math.isfinite(worker.loss) or not bool(moved.isfinite().all()):
            return
        self._moved.add(moved)
        if self.probe is None:
            return
        worker.narrow.eval()
        output = call(worker.narrow, self._inputs)
        loss = float(self._loss_fn(output, self._labels))
        worker.narrow.train()
        numbers = next(tensors_of(output)).reshape(-1)
        numbers = numbers[_some("outputs", len(numbers)).to(numbers.device)].cpu().double()
        if math.isfinite(loss) and bool(numbers.isfinite().all()):
            self._outputs.add(numbers)
            self._loss += loss

    def measured(self, state: State, score: Score | None) -> Diagnosis:
        """Return what was seen in the round that has just ended, and warn, in the first process, of what is new."""
        loop = self._loop
        num_workers, left = loop.algorithm.partition.num_workers, loop.num_rounds - state.round
        sums = [self._outputs.row(), self._moved.row(), torch.tensor([self._loss, self._shared, self._weights])]
        # All three at once: what it costs on a slow link is the way there and back.
        rows = torch.split(loop.runtime.total(torch.cat(sums)).double(), [len(row) for row in sums])
        outputs, moves = _squares(rows[0]), _squares(rows[1])
        looked, (loss, shared, weights) = float(rows[0][0]), rows[2].tolist()
        if moves is not None and shared >= diagnosis.SHARED_OF_SUBNET * weights:
            self._judged.append(moves)
        skew = self._label_skew(self._counts, num_workers) if self._counts is not None else None
        self._counts = None
        self._clear()
        trained, never = state.trained, 0.0
        if bool((trained == 0).any()):
            never = diagnosis.never_trained(trained, loop.share(state.round), num_workers, left)
        found = Diagnosis(
            dispersion=diagnosis.dispersion(*outputs) if outputs else None,
            subnet_loss=loss / looked if looked else None,
            full_loss=score.probe_loss if score is not None else None,
            drift=diagnosis.drift(*moves) if moves else None,
            least_trained=int(trained.min()) if len(trained) else None,
            mean_trained=float(trained.double().mean()) if len(trained) else None,
            rounds_left=left,
            label_skew=skew,
        )
        if self._deals and found.subnet_loss is not None and found.full_loss is not None:
            self._losses.append((found.subnet_loss, found.full_loss))
        warned = {
            "drift": diagnosis.warn_of_drift(self._judged, num_workers),
            "label skew": diagnosis.warn_of_skew(skew, num_workers),
            "coverage": diagnosis.warn_of_coverage(never, left),
            "scale": diagnosis.warn_of_scale(self._losses),
        }
        new = {kind: text for kind, text in warned.items() if text is not None and kind not in self._said}
        self._said |= set(new)
        for text in new.values() if loop.runtime.rank == 0 else ():
            warnings.warn(text, TheoryWarning, stacklevel=3)
        return replace(found, warnings=new)

    def _read(self) -> Tensor:
        """Return what the worker has of the elements that are looked at, float64."""
        parts = [t.reshape(-1)[at.to(t.device)] for t, (_, at) in zip(self._tensors, self._places, strict=True)]
        return torch.cat(parts).cpu().double() if parts else torch.empty(0, dtype=torch.float64)

    def _label_skew(self, counts: Mapping[int, Tensor], num_workers: int) -> float | None:
        """Return the mean over workers; None unless all of them have labels that are classes."""
        own = [each for each in counts.values() if each.any()]
        total, none = self._loop.runtime.total, torch.zeros(MOST_CLASSES + 1, dtype=torch.float64)
        sums = total(sum((torch.cat([torch.ones(1), each / each.sum()]) for each in own), none))
        skews = [diagnosis.label_skew(each, sums[1:] / num_workers) for each in own]
        skew = float(total(torch.tensor(sum(skews), dtype=torch.float64))) / num_workers
        return skew if int(sums[0]) == num_workers else None


class _Sum:
    """The sum of vectors and of their squared lengths."""

    def __init__(self) -> None:
        self.count, self.squares, self.vector = 0, 0.0, torch.zeros(MOST_NUMBERS, dtype=torch.float64)

    def add(self, vector: Tensor) -> None:
        """Add a vector of at most ``MOST_NUMBERS``."""
        self.count += 1
        self.squares += float(vector.square().sum())
        self.vector[: len(vector)] += vector

    def row(self) -> Tensor:
        """Return all of it, to be added up over processes."""
        return torch.cat([torch.tensor([self.count, self.squares]), self.vector]).float()


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
