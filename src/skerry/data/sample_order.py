"""The order in which a worker sees its samples: a pure function of (seed, worker, step)."""

import os

import torch
from torch import Tensor

from skerry.randomness import generator
from skerry.whole_number import check_whole_number


class SampleOrder:
    """The samples of each of a worker's batches.

    A worker's samples form a stream: one permutation of them per epoch, drawn from (seed, worker, epoch). Step s takes
    positions [s * batch_size, (s + 1) * batch_size) of the stream. So a batch may span epochs, no sample is dropped,
    and a batch may be larger than the number of samples. Any step is computed directly, so resume is exact.

    Args:
        num_samples: the worker's number of samples, at least 1.
        batch_size: samples in each batch.
        seed: determines the order, together with ``worker``.
        worker: the worker's number.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(self, num_samples: int, *, batch_size: int, seed: int, worker: int) -> None:
        check_whole_number("batch_size", batch_size, 1)
        self._num_samples, self._batch_size, self._seed, self._worker = num_samples, batch_size, seed, worker
        self._latest: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))  # epoch and its permutation

    def batch(self, step: int) -> Tensor:
        """Return the indices of the samples of ``step``, (batch_size,), each 0 .. num_samples - 1."""
        position, end = step * self._batch_size, (step + 1) * self._batch_size
        pieces = []
        while position < end:
            epoch, offset = divmod(position, self._num_samples)
            piece = self._permutation(epoch)[offset : offset + end - position]
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def sample(self, num: int) -> Tensor:
        """Return the first ``num`` indices, capped at num_samples, of a fixed shuffled order of the samples.

        So a larger sample begins with a smaller one.
        """
        check_whole_number("num", num, 1)
        return torch.randperm(self._num_samples, generator=generator(self._seed, "sample", self._worker))[:num]

    def _permutation(self, epoch: int) -> Tensor:
        if self._latest[0] != epoch:
            rng = generator(self._seed, "data", self._worker, epoch)
            self._latest = (epoch, torch.randperm(self._num_samples, generator=rng))
        return self._latest[1]


class PoissonOrder(SampleOrder):
    """The same, where each step takes each sample with probability ``batch_size / num_samples``, whatever the others.

    So a batch may be empty. Accountants of differential privacy assume that, and that nobody can guess who was taken.

    Args:
        num_samples, batch_size, worker: as there.
        seed: None: ``secret_uniform`` draws, anew in each call. A number makes it repeatable, and easy to guess:
            a generator of torch has as few as 2**32 different beginnings.

    Raises:
        ValueError: ``batch_size`` is below 1, or above ``num_samples``.
    """

    def __init__(self, num_samples: int, *, batch_size: int, seed: int | None, worker: int) -> None:
        super().__init__(num_samples, batch_size=batch_size, seed=seed or 0, worker=worker)
        self._is_secret = seed is None
        if batch_size > num_samples:
            raise ValueError(
                f"batch_size={batch_size}: expected at most the {num_samples} samples of worker {worker}, since each "
                "is taken with probability batch_size / samples"
            )
        self.sample_rate = batch_size / num_samples

    def batch(self, step: int) -> Tensor:
        """Return the indices of the samples of ``step``, int64."""
        if self._is_secret:
            uniform = secret_uniform(self._num_samples)
        else:
            rng = generator(self._seed, "poisson", self._worker, step)
            uniform = torch.rand(self._num_samples, generator=rng, dtype=torch.float64)
        return (uniform < self.sample_rate).nonzero().flatten()


def secret_uniform(num: int) -> Tensor:
    """Return ``num`` uniform numbers of 53 bits between 0 and 1, float64, from ``os.urandom``."""
    if not num:
        return torch.empty(0, dtype=torch.float64)
    bits = torch.frombuffer(bytearray(os.urandom(8 * num)), dtype=torch.int64)
    return ((bits & (2**53 - 1)).double() + 0.5) / 2**53
