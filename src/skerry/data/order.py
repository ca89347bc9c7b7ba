"""The order in which a worker sees its samples: a pure function of (seed, worker, step)."""

import torch
from torch import Tensor

from skerry.randomness import generator


class Order:
    """A worker's stream of samples, cut into batches.

    The stream is the concatenation over epochs of perm(seed, worker, epoch) of its samples. Step s takes positions
    [s * batch_size, (s + 1) * batch_size) of it. So a batch may span epochs, nothing is ever dropped, there may be
    fewer samples than a batch has, and step 500 is had directly, which makes resume exact.

    Args:
        num_samples: of this worker, at least 1.
        batch_size: samples in each batch.
        seed: everything comes from this and
        worker: the number of the worker.
    """

    def __init__(self, num_samples: int, *, batch_size: int, seed: int, worker: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        self._num_samples, self._batch_size, self._seed, self._worker = num_samples, batch_size, seed, worker
        self._latest: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))  # epoch and its permutation

    def batch(self, step: int) -> Tensor:
        """Return the samples of ``step``, by their numbers from 0."""
        position, end = step * self._batch_size, (step + 1) * self._batch_size
        pieces = []
        while position < end:
            epoch, offset = divmod(position, self._num_samples)
            piece = self._permutation(epoch)[offset : offset + end - position]
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def sample(self, num: int) -> Tensor:
        """Return ``num`` (or all) samples in a fixed shuffled order, so that a larger sample begins with a smaller."""
        if num < 1:
            raise ValueError(f"num: got {num}, expected at least 1")
        return torch.randperm(self._num_samples, generator=generator(self._seed, "sample", self._worker))[:num]

    def _permutation(self, epoch: int) -> Tensor:
        if self._latest[0] != epoch:
            rng = generator(self._seed, "data", self._worker, epoch)
            self._latest = (epoch, torch.randperm(self._num_samples, generator=rng))
        return self._latest[1]
