"""Data in memory, of which each worker sees its own samples, in an order that is a pure function of its step."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from skerry.data.order import Order


class Shards:
    """The data of all workers in memory, of which each worker touches only its own part.

    The order of a worker's batches is that of ``data/order.py``: epochs are shuffled one by one, a batch may span two,
    nothing is dropped, and step 500 is had directly, which makes resume exact.

    A worker's samples are copied out of ``x`` and ``y`` on first use of that worker: a process that runs
    one worker copies one part, the serial runtime one more copy of the whole in all.

    Args:
        x: inputs, samples first; kept as they are (uint8 images take a quarter of the memory of floats).
        y: targets, as many samples as ``x``.
        parts: for each worker the indices of its samples, as ``split`` returns them. They may overlap.
        batch_size: samples in each batch of each worker.
        seed: everything about the order comes from this.
        transform: turns a batch of stored inputs into the model's input, e.g. to normalised floats. Should be
            deterministic, else resume is not exact.

    Raises:
        ValueError: lengths of x and y differ; no parts; a part is empty, not one dim of int64, or has
            indices out of range; batch_size below 1.

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
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise ValueError(f"x and y: shapes {tuple(x.shape)} and {tuple(y.shape)}, expected as many samples in both")
        if len(parts) == 0:
            raise ValueError("parts: none given, expected one for each worker")
        for worker, part in enumerate(parts):
            check_part(worker, part, len(x))
        self.num_workers = len(parts)
        self._x, self._y, self._parts = x, y, list(parts)
        self._transform = transform
        self._orders = [Order(len(p), batch_size=batch_size, seed=seed, worker=w) for w, p in enumerate(parts)]
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # by worker, gathered on first use

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches (x, y) of steps first_step .. first_step + num_steps - 1 of ``worker``.

        Raises:
            ValueError: no such worker, or a negative step or count; at the call, not at the first batch.
        """
        self._check_worker(worker)
        if first_step < 0 or num_steps < 0:
            raise ValueError(f"first_step and num_steps: got {first_step} and {num_steps}, expected 0 or more")
        return (self._batch(worker, step) for step in range(first_step, first_step + num_steps))

    def sample(self, worker: int, num: int) -> Tensor:
        """Return ``num`` transformed inputs of ``worker``, or all it has where that is fewer; for
        calibration.

        They are the first of a fixed shuffled order of its part, so a larger sample begins with a smaller
        one.
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
    """Raise ValueError unless ``part`` has numbers of samples."""
    if part.ndim != 1 or part.dtype != torch.int64:
        raise ValueError(f"parts[{worker}]: {part.dtype} of shape {tuple(part.shape)}, expected one dim of torch.int64")
    if len(part) == 0:
        raise ValueError(f"parts[{worker}]: empty, expected at least one sample; use fewer workers or another split")
    low, high = int(part.min()), int(part.max())
    if low < 0 or high >= num_samples:
        raise ValueError(f"parts[{worker}]: indices {low} .. {high}, expected 0 .. {num_samples - 1} (as many as in x)")
