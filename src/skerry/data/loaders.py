"""Data from ordinary ``torch.utils.data.DataLoader`` objects, one per worker."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from skerry.data.inputs_and_label import Columns, inputs_and_label
from skerry.model.inputs import Inputs, fit, join, map_tensors
from skerry.randomness import own_random_state, seed_of


class _Epoch:
    """One pass over a loader, from its first batch, with its own random state."""

    def __init__(self, loader: DataLoader[Any], number: int, seed: int) -> None:
        self.number, self.position = number, 0
        for own in (loader.generator, getattr(loader.sampler, "generator", None)):
            if own is not None:
                own.manual_seed(seed)
        set_epoch = getattr(loader.sampler, "set_epoch", None)  # of a DistributedSampler
        if set_epoch is not None:
            set_epoch(number)
        with own_random_state(seed):
            self._batches: Iterator[Any] = iter(loader)
            self._state = torch.get_rng_state()

    def next(self) -> Any:
        """Return the next batch."""
        with own_random_state():
            torch.set_rng_state(self._state)
            batch = next(self._batches)
            self._state = torch.get_rng_state()
        self.position += 1
        return batch


class FromLoaders:
    """The data of all workers, read from their loaders; ``from_loaders`` makes it."""

    def __init__(self, loaders: Sequence[DataLoader[Any]], *, seed: int, inputs: Columns, label: str) -> None:
        for worker, loader in enumerate(loaders):
            _check(worker, loader)
        self.num_workers = len(loaders)
        self._loaders, self._seed, self._inputs, self._label = loaders, seed, inputs, label
        self._running: dict[int, _Epoch] = {}
        self._samples: dict[int, tuple[int, Inputs]] = {}

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Inputs, Any]]:
        """Yield the batches (x, y) of steps first_step .. first_step + num_steps - 1 of ``worker``."""
        for step in range(first_step, first_step + num_steps):
            number, position = divmod(step, len(self._loaders[worker]))
            epoch = self._running.get(worker)
            if epoch is None or epoch.number != number or epoch.position > position:
                epoch = self._running[worker] = self._start(worker, number)
            while epoch.position < position:
                epoch.next()
            yield inputs_and_label(epoch.next(), self._inputs, self._label)

    def sample(self, worker: int, num: int) -> Inputs:
        """Return ``num`` inputs of ``worker``, capped at all it has.

        If batches are padded to different lengths, only the first batches of the same shape are used.
        """
        known, inputs = self._samples.get(worker, (0, ()))
        if known < num:
            self._running.pop(worker, None)  # it may share a generator with this epoch
            found: list[Inputs] = []
            epoch, count = self._start(worker, -1), 0
            while count < num and epoch.position < len(self._loaders[worker]):
                x, y = inputs_and_label(epoch.next(), self._inputs, self._label)
                if found and not fit([found[0], x]):
                    break
                found.append(x)
                count += len(y)
            inputs = join(found)
            self._samples[worker] = (num, inputs)
        return map_tensors(lambda tensor: tensor[:num], inputs)  # type: ignore[no-any-return]

    def _start(self, worker: int, number: int) -> _Epoch:
        return _Epoch(self._loaders[worker], max(0, number), seed_of(self._seed, "loader", worker, number))


def from_loaders(
    loaders: Sequence[DataLoader[Any]], *, seed: int = 0, inputs: Columns = None, label: str = "label"
) -> FromLoaders:
    """Return the data of one worker per loader; batches are the loaders'.

    Each epoch of a loader starts with torch's random state, and that of the loader's or its sampler's own generator,
    set by (seed, worker, epoch). So a loader gives the same batches whenever it is asked, and resume is exact, for a
    dataset, sampler and collate function that only use torch's random generator. It is not exact if one of them uses
    Python's or numpy's generator, or keeps state.

    A step in the middle of an epoch requires replaying the epoch from its beginning. Resuming takes that long;
    ``from_dataset`` reads any step directly. A batch never spans two epochs, so the last batch of an epoch may be
    smaller (``drop_last=True`` leaves it out).

    Args:
        loaders: one per worker, over the worker's own samples. A process reads only the loaders of its own workers.
        seed: determines the random state of every epoch.
        inputs: for dict batches, the columns to call the model with; see ``from_dataset``.
        label: for dict batches, the column with the label.

    Returns:
        An object to pass as the data of ``train``.

    Raises:
        ValueError: there are no loaders; one is not a DataLoader, has no length (it reads an ``IterableDataset``), has
            no batches, or has ``persistent_workers=True``, so that its processes keep random state between epochs.

    Example:
        >>> sets = [torch.utils.data.TensorDataset(torch.arange(3.0) + 3 * w, torch.arange(3)) for w in range(2)]
        >>> data = from_loaders([DataLoader(s, batch_size=3, shuffle=True) for s in sets])
        >>> [sorted(x.tolist()) for x, y in data.batches(worker=1, first_step=70, num_steps=1)]
        [[3.0, 4.0, 5.0]]
    """
    if len(loaders) == 0:
        raise ValueError("loaders: none given, expected one for each worker")
    return FromLoaders(loaders, seed=seed, inputs=inputs, label=label)


def _check(worker: int, loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise ValueError(f"loaders[{worker}]: got {type(loader).__name__}, expected a torch.utils.data.DataLoader")
    try:
        num = len(loader)
    except TypeError:
        num = -1
    if num < 1:
        raise ValueError(
            f"loaders[{worker}]: {'no length' if num < 0 else 'no batches'}, expected batches of a map-style dataset; "
            "for a stream implement skerry.training.Data"
        )
    if loader.persistent_workers:
        raise ValueError(
            f"loaders[{worker}]: persistent_workers=True keeps random state between epochs, expected False"
        )
