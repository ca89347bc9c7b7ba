"""One ``DataLoader`` dealt to workers: every worker gets a loader of its own over a part of the batches or samples."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from skerry.randomness import OwnRandomness, own_random_state, seed_of


def deal(loader: DataLoader[Any], num_workers: int, seed: int) -> list[DataLoader[Any]]:
    """Return a loader for each worker.

    Worker w has batches w, w + num_workers, ... of a map-style dataset, in the order that the sampler of ``loader``
    draws from (seed, pass), and samples w, w + num_workers, ... of a stream, or a shard of it.

    Raises:
        ValueError: its class has an iterator of its own, its sampler deals samples out itself, or there are fewer
            batches than workers.
    """
    kind = type(loader)
    if (kind.__iter__, kind._get_iterator) != (DataLoader.__iter__, DataLoader._get_iterator):  # as a NeighborLoader
        raise ValueError(
            f"loader: {kind.__name__} has an iterator of its own, so its batches are not those that Skerry "
            "would deal; give a list of one per worker"
        )
    sampler = loader.sampler if not isinstance(loader.dataset, IterableDataset) else None
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        raise ValueError(
            "loader: its DistributedSampler deals samples to processes, and Skerry would deal them again; leave it "
            "out, or give a list of one loader per worker (a process reads only that of its own worker)"
        )
    common = {name: getattr(loader, name) for name in _KEPT}
    if isinstance(loader.dataset, IterableDataset):
        common |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        return [DataLoader(_part(loader.dataset, w, num_workers), **common) for w in range(num_workers)]
    if len(loader) < num_workers:
        raise ValueError(
            f"loader: {len(loader)} batches for {num_workers} workers, so worker {len(loader)} has none at step 0; use "
            "smaller batches or fewer workers"
        )
    order = _Order(loader, seed)
    parts = [_EveryNth(order, w, num_workers) for w in range(num_workers)]
    if loader.batch_sampler is None:  # the dataset's items are batches
        return [DataLoader(loader.dataset, batch_size=None, sampler=part, **common) for part in parts]
    return [DataLoader(loader.dataset, batch_sampler=part, **common) for part in parts]


_KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
    "prefetch_factor",
)  # fmt: skip


def length(loader: DataLoader[Any]) -> int | None:
    """Return the number of batches, None where that is not known."""
    try:
        return len(loader)
    except TypeError:
        return None


def random_parts(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return the random generators that a loader and its samplers have of their own."""
    return [own for part in _parts(loader) if isinstance(own := getattr(part, "generator", None), torch.Generator)]


def seed_(loader: DataLoader[Any], number: int, seed: int) -> None:
    """Set the generators that a loader has of its own, and tell sampler and dataset the number of the pass."""
    for own in random_parts(loader):
        own.manual_seed(seed)
    for part in (*_parts(loader), loader.dataset):
        if hasattr(part, "set_epoch"):  # of a DistributedSampler, or of Hugging Face datasets
            part.set_epoch(number)


def _parts(loader: DataLoader[Any]) -> list[object]:
    return [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]


class _Order:
    """The order of a map-style loader's batches in a pass, as lists of indices."""

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.loader, self._seed = loader, seed
        self._latest: tuple[int, list[Any]] = (-1, [])

    def of(self, number: int) -> list[Any]:
        if self._latest[0] != number:
            seed = seed_of(self._seed, "order", number)
            seed_(self.loader, number, seed)
            with own_random_state(seed):
                self._latest = number, list(self.loader.batch_sampler or self.loader.sampler)
        return self._latest[1]


class _EveryNth(Sampler[Any]):
    """Every n-th entry of an order."""

    def __init__(self, order: _Order, worker: int, num_workers: int) -> None:
        self._order, self._worker, self._num_workers, self._number = order, worker, num_workers, 0

    def set_epoch(self, number: int) -> None:
        self._number = number

    def __iter__(self) -> Iterator[Any]:
        return iter(self._order.of(self._number)[self._worker :: self._num_workers])

    def __len__(self) -> int:
        return len(range(self._worker, len(self._order.loader), self._num_workers))


def _part(dataset: Any, worker: int, num_workers: int) -> IterableDataset[Any]:
    num_shards = getattr(dataset, "num_shards", 0)
    if num_shards and num_shards % num_workers == 0 and hasattr(dataset, "shard"):
        shard: IterableDataset[Any] = dataset.shard(num_shards=num_workers, index=worker)
        return shard
    return _EveryNthSample(dataset, worker, num_workers)


class _EveryNthSample(IterableDataset[Any]):
    """Every n-th sample of a stream."""

    def __init__(self, dataset: IterableDataset[Any], worker: int, num_workers: int) -> None:
        self._dataset, self._worker, self._num_workers = dataset, worker, num_workers

    def set_epoch(self, number: int) -> None:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(number)

    def __iter__(self) -> Iterator[Any]:
        # All workers draw this seed. What their collate functions draw then does not change the stream.
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return islice(OwnRandomness(self._dataset, seed), self._worker, None, self._num_workers)
