"""Shards: data in memory, of which each worker sees its own samples."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from skerry.data.sample_order import PoissonOrder, SampleOrder


class Shards:
    """The data of all workers in memory, of which each worker uses only its own part.

    A worker's batches are a pure function of (seed, worker, step). Every epoch is shuffled anew, a batch may span two
    epochs, and no sample is dropped. Any step is computed directly, so resume is exact.

    A worker's samples are copied out of ``x`` and ``y`` when the worker is first used. A process that runs one worker
    copies one part; the serial runtime makes one more copy of all data.

    Args:
        x: inputs, (num_samples, ...), kept as they are (uint8 images take a quarter of the memory of floats).
        y: targets, (num_samples, ...).
        parts: for each worker the int64 indices of its samples, as ``split`` returns them. They may overlap.
        batch_size: samples in each batch of each worker.
        seed: determines the order.
        transform: turns a batch of stored inputs into the model's input, e.g. into normalised floats. If it is not
            deterministic, resume is not exact.

    Raises:
        ValueError: x and y have different lengths; there are no parts; a part is empty, not one dim of int64, or has
            indices out of range; ``batch_size`` is below 1.

    Example:
        >>> shards = Shards(torch.arange(4), torch.arange(4), [torch.tensor([0, 1]), torch.tensor([2, 3])],
        ...                 batch_size=2, seed=0)
        >>> [sorted(x.tolist()) for x, y in shards.batches(worker=1, first_step=500, num_steps=2)]
        [[2, 3], [2, 3]]
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        parts: Sequence[Tensor],
        *,
        batch_size: int,
        seed: int,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
            raise ValueError(
                f"x and y: got {type(x).__name__} and {type(y).__name__}, expected tensors; for several inputs use "
                "from_dataset, skerry.graphs, or an object of your own (docs/data.md)"
            )
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ValueError(f"x and y: shapes {tuple(x.shape)} and {tuple(y.shape)}, expected as many samples in both")
        if len(parts) == 0:
            raise ValueError("parts: none given, expected one for each worker")
        for worker, part in enumerate(parts):
            check_part(worker, part, len(x))
        self.num_workers, self.batch_size = len(parts), batch_size
        self._x, self._y, self._parts = x, y, list(parts)
        self._transform = transform
        self._orders = [SampleOrder(len(p), batch_size=batch_size, seed=seed, worker=w) for w, p in enumerate(parts)]
        if small := [worker for worker, part in enumerate(parts) if len(part) < batch_size]:
            warnings.warn(
                f"parts[{small[0]}]: {len(parts[small[0]])} samples, fewer than batch_size={batch_size}, so a batch "
                "has samples several times; use smaller batches or fewer workers",
                stacklevel=2,
            )
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # by worker, gathered on first use

    @property
    def steps_per_pass(self) -> int:
        """Batches in which the worker that has most samples sees each of them once."""
        return -(-max(map(len, self._parts)) // self.batch_size)

    def num_samples(self, worker: int) -> int:
        """Return how many samples ``worker`` has."""
        self._check_worker(worker)
        return len(self._parts[worker])

    @property
    def sample_rates(self) -> list[float]:
        """The probability with which a step takes each sample, by worker, of what ``poisson`` returns."""
        return [order.sample_rate for order in self._orders if isinstance(order, PoissonOrder)]

    def poisson(self, seed: int | None) -> "Shards":
        """Return the same data, where each step takes each sample with probability ``batch_size / samples``.

        Args:
            seed: determines the choice, whatever the size of a batch; None: nobody can guess it, as privacy needs it.

        Raises:
            ValueError: a sample belongs to two workers, or twice to one; a worker has less than ``batch_size``.
        """
        together = torch.cat(self._parts)
        if num := len(together) - int((together.bincount() > 0).sum()):
            raise ValueError(
                f"parts: {num} samples belong to several workers, or to one several "
                "times, so that privacy would be less than what is reported for each; expected parts without any"
            )
        made, size = copy(self), self.batch_size
        made._orders = [
            PoissonOrder(len(part), batch_size=size, seed=seed, worker=w) for w, part in enumerate(self._parts)
        ]
        return made

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches (x, y) of steps first_step .. first_step + num_steps - 1 of ``worker``.

        Raises:
            ValueError: no such worker, or a negative step or count. Raised by the call, not by the first batch.
        """
        self._check_worker(worker)
        if first_step < 0 or num_steps < 0:
            raise ValueError(f"first_step and num_steps: got {first_step} and {num_steps}, expected 0 or more")
        return (self._batch(worker, step) for step in range(first_step, first_step + num_steps))

    def sample(self, worker: int, num: int) -> Tensor:
        """Return ``num`` transformed inputs of ``worker``, capped at all it has, to calibrate with.

        They are the first of a fixed shuffled order, so a larger sample begins with a smaller one.

        Raises:
            ValueError: no such worker, or ``num`` is below 1.
        """
        self._check_worker(worker)
        x, _ = self._gather(worker)
        return self._present(x.index_select(0, self._orders[worker].sample(num).to(x.device)))

    def _batch(self, worker: int, step: int) -> tuple[Tensor, Tensor]:
        x, y = self._gather(worker)
        order = self._orders[worker].batch(step)
        return self._present(x.index_select(0, order.to(x.device))), y.index_select(0, order.to(y.device))

    def _gather(self, worker: int) -> tuple[Tensor, Tensor]:
        if worker not in self._own:
            part = self._parts[worker]
            self._own[worker] = (
                self._x.index_select(0, part.to(self._x.device)),
                self._y.index_select(0, part.to(self._y.device)),
            )
        return self._own[worker]

    def _present(self, x: Tensor) -> Tensor:
        return x if self._transform is None else self._transform(x)

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self.num_workers:
            raise ValueError(f"worker: got {worker}, expected 0 .. {self.num_workers - 1}")


def check_part(worker: int, part: Tensor, num_samples: int) -> None:
    """Raise ValueError unless ``part`` has indices of samples, at least one, each 0 .. num_samples - 1."""
    if part.ndim != 1 or part.dtype != torch.int64:
        raise ValueError(f"parts[{worker}]: {part.dtype} of shape {tuple(part.shape)}, expected one dim of torch.int64")
    if len(part) == 0:
        raise ValueError(f"parts[{worker}]: empty, expected at least one sample; use fewer workers or another split")
    low, high = int(part.min()), int(part.max())
    if low < 0 or high >= num_samples:
        raise ValueError(f"parts[{worker}]: indices {low} .. {high}, expected 0 .. {num_samples - 1} (as many as in x)")
