"""Data from ordinary ``torch.utils.data.DataLoader`` objects: one per worker, or one that is dealt to the workers."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from skerry.data.deal_loader import deal, length, random_parts, seed_
from skerry.data.inputs_and_label import Columns, inputs_and_label
from skerry.model.inputs import Inputs, fit, join, take
from skerry.randomness import OwnRandomness, seed_of


class _Pass:
    """One pass over a loader, from its first batch, with its own random state."""

    def __init__(self, loader: DataLoader[Any], number: int, seed: int) -> None:
        self.number, self.position = number, 0
        seed_(loader, max(0, number), seed)
        self._batches = OwnRandomness(loader, seed)

    def batches(self) -> Iterator[Any]:
        """Yield the batches that are left."""
        for batch in self._batches:
            self.position += 1
            yield batch


class FromLoaders:
    """The data of all workers, read from their loaders; ``from_loaders`` makes it.

    Attributes:
        num_workers: the number of loaders.
        steps_per_pass: batches of the longest loader; None if one has no length.
    """

    def __init__(
        self, loaders: Sequence[DataLoader[Any]], *, seed: int, inputs: Columns, label: str | None, alike: bool = False
    ) -> None:
        lengths = [_check(worker, loader) for worker, loader in enumerate(loaders)]
        self.num_workers = len(loaders)
        self.steps_per_pass = max((n for n in lengths if n is not None), default=None) if None not in lengths else None
        self._loaders, self._seed, self._inputs, self._label, self._alike = loaders, seed, inputs, label, alike
        self._running: dict[int, tuple[int, _Pass]] = {}  # by worker, with the step of its first batch
        self._latest: dict[int, tuple[int, Any]] = {}  # by worker, the batch that was read last and its step
        self._samples: dict[int, tuple[int, Inputs]] = {}

    def num_samples(self, worker: int) -> int:
        """Return how many samples the sampler of ``worker`` draws in a pass.

        Raises:
            ValueError: the loader does not tell: it is one that was dealt, or of a stream, or its dataset has batches,
                or it has a batch sampler of another class than torch's ``BatchSampler``, or a sampler without a length.
        """
        loader = self._loaders[worker]
        # Another batch sampler chooses the samples itself, and ``loader.sampler`` is then one that nothing draws from.
        if type(loader.batch_sampler) is BatchSampler and not isinstance(loader.dataset, IterableDataset):
            with suppress(TypeError):
                return len(loader.batch_sampler.sampler)  # type: ignore[arg-type]
        raise ValueError(
            f"loaders[{worker}]: it does not tell how many samples worker {worker} has; give a list of one loader "
            "per worker, over datasets of samples that have a length, with torch's BatchSampler and a sampler that has "
            "a length"
        )

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Inputs, Any]]:
        """Yield the batches (x, y) of steps first_step .. first_step + num_steps - 1 of ``worker``."""
        for step in range(first_step, first_step + num_steps):
            if self._latest.get(worker, (-1,))[0] != step:
                self._latest[worker] = step, self._read(worker, step)
            yield inputs_and_label(self._latest[worker][1], self._inputs, self._label, f"worker {worker}, step {step}")

    def sample(self, worker: int, num: int) -> Inputs:
        """Return ``num`` inputs of ``worker``, capped at all it has.

        If batches are padded to different lengths, only the first batches of the same shape are used.
        """
        known, inputs = self._samples.get(worker, (0, ()))
        if known < num:
            if random_parts(self._loaders[worker]):
                self._running.pop(worker, None)  # it may share a generator with this pass
            found: list[Inputs] = []
            count = 0
            for batch in self._start(worker, -1).batches():
                x, y = inputs_and_label(batch, self._inputs, self._label, f"worker {worker}, a sample")
                if isinstance(y, int | float) or (isinstance(y, Tensor) and not y.dim()):
                    raise ValueError(
                        f"worker {worker}: labels have no batch dim; give the DataLoader a batch_size, or items that "
                        "are batches"
                    )
                if found and not fit([found[0], x]):
                    break
                found.append(x)
                count += len(y)
                if count >= num:
                    break
            if not found:
                raise ValueError(f"loaders[{worker}]: no batches, expected at least one in each pass")
            inputs = join(found)
            self._samples[worker] = (num, inputs)
        return take(inputs, slice(num))  # type: ignore[no-any-return]

    def _read(self, worker: int, step: int) -> Any:
        """Return the batch of a step. A length says in which pass it is; a stream is counted through."""
        loader = self._loaders[worker]
        size = None if isinstance(loader.dataset, IterableDataset) else len(loader)
        number = step // size if size else 0
        first, now = self._running.get(worker, (0, None))
        if now is None or step < first + now.position or (size and now.number != number):
            first, now = number * (size or 0), self._start(worker, number)
        while True:
            self._running[worker] = first, now
            for batch in now.batches():
                if first + now.position > step:
                    return batch
            if size or not now.position:
                expected = f"its length, {size}" if size else "at least one in each pass"
                raise ValueError(
                    f"loaders[{worker}]: ended after {now.position} batches, worker {worker}, step "
                    f"{first + now.position}; expected {expected}"
                )
            first, now = first + now.position, self._start(worker, now.number + 1)

    def _start(self, worker: int, number: int) -> _Pass:
        key = "all" if self._alike else worker
        return _Pass(self._loaders[worker], number, seed_of(self._seed, "loader", key, number))


def from_loaders(
    loaders: DataLoader[Any] | Sequence[DataLoader[Any]],
    *,
    num_workers: int | None = None,
    seed: int = 0,
    inputs: Columns = None,
    label: str | None = None,
) -> FromLoaders:
    """Return the data of one worker per loader, or of ``num_workers`` workers to whom one loader is dealt.

    Of one loader, worker w gets every ``num_workers``-th batch, from batch w on. Of one over an ``IterableDataset`` it
    gets every ``num_workers``-th sample, or, where ``num_shards`` of the dataset can be divided (Hugging Face
    ``datasets``), its ``shard``. Only a stream without shards is read whole for each worker.

    Batches are pairs (inputs, labels), dicts of columns, or graphs of PyTorch Geometric (``NeighborLoader``: give a
    list), whose labels ``y`` are those of seeds, of ``train_mask``, or of whole graphs.

    Each pass over a loader starts with torch's random state, and that of the loader's or its sampler's own generator,
    set by (seed, worker, pass); ``set_epoch`` of sampler and dataset is called. So a loader gives the same batches
    whenever it is asked, and resume is exact, for a dataset, sampler and collate function that only use torch's random
    generator. It is not exact if one of them uses Python's or numpy's generator, or keeps state.

    A step in the middle of a pass requires replaying the pass from its beginning, and of a stream all passes before.
    Resuming takes that long; ``from_dataset`` reads any step directly. A batch never spans two passes, so the last
    batch of a pass may be smaller (``drop_last=True`` leaves it out).

    Args:
        loaders: one loader, or a list of one per worker, over the worker's own samples. A process reads only the
            loaders of its own workers.
        num_workers: the algorithm's number of workers, for one loader.
        seed: determines the random state of every pass.
        inputs: for dict batches, the columns to call the model with; see ``from_dataset``.
        label: for dict batches, the column with the label; None: ``"label"`` or ``"labels"``.

    Returns:
        An object to pass as the data of ``train``.

    Raises:
        ValueError: there are no loaders; one is not a DataLoader, has no batches, or (in a list) has
            ``persistent_workers=True``, so that its processes keep random state between passes; the only loader has a
            ``DistributedSampler``, or fewer batches than there are workers.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> sets = [torch.utils.data.TensorDataset(torch.arange(3.0) + 3 * w, torch.arange(3)) for w in range(2)]
        >>> data = from_loaders([DataLoader(s, batch_size=3, shuffle=True) for s in sets])
        >>> [sorted(x.tolist()) for x, y in data.batches(worker=1, first_step=70, num_steps=1)]
        [[3.0, 4.0, 5.0]]
        >>> one = DataLoader(torch.utils.data.ConcatDataset(sets), batch_size=2)
        >>> [x.tolist() for x, y in from_loaders(one, num_workers=2).batches(worker=1, first_step=0, num_steps=1)]
        [[2.0, 3.0]]
    """
    if isinstance(loaders, DataLoader):
        if num_workers is None:
            raise ValueError("num_workers: not given, expected the number of workers to deal one loader to")
        dealt = deal(loaders, num_workers, seed)
        if loaders.persistent_workers:
            warnings.warn(
                "loader: persistent_workers=True has no effect, since its processes start again in every pass of every "
                "worker; for small data num_workers=0 is faster",
                stacklevel=2,
            )
        is_stream = isinstance(loaders.dataset, IterableDataset)
        data = FromLoaders(dealt, seed=seed, inputs=inputs, label=label, alike=is_stream)
        if is_stream and (num := length(loaders)) is not None:
            data.steps_per_pass = -(-num // num_workers)
        return data
    if len(loaders) == 0:
        raise ValueError("loaders: none given, expected one for each worker")
    if num_workers not in (None, len(loaders)):
        raise ValueError(f"loaders: {len(loaders)} given, expected one for each of {num_workers} workers, or only one")
    data = FromLoaders(loaders, seed=seed, inputs=inputs, label=label)
    for worker, loader in enumerate(loaders):
        own = None if isinstance(loader.dataset, IterableDataset) else length(loader)
        if own and data.steps_per_pass and 2 * own < data.steps_per_pass:
            warnings.warn(
                f"loaders[{worker}]: {own} batches, but another worker has {data.steps_per_pass}, so worker {worker} "
                f"begins its second pass at step {own}",
                stacklevel=2,
            )
    return data


def as_data(data: Any, num_workers: int, seed: int) -> Any:
    """Return the data of loaders, or of one dealt to ``num_workers``; anything else as it is."""
    if isinstance(data, DataLoader | list | tuple):
        return from_loaders(data, num_workers=num_workers, seed=seed)
    return data


def _check(worker: int, loader: Any) -> int | None:
    """Return the length of a loader, None if it has none; raise ValueError where it cannot be used."""
    if not isinstance(loader, DataLoader):
        tensors = "; for tensors give DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)"
        raise ValueError(
            f"loaders[{worker}]: got {type(loader).__name__}, expected a torch.utils.data.DataLoader"
            + (tensors if isinstance(loader, Tensor) else "")
        )
    if loader.persistent_workers:
        raise ValueError(
            f"loaders[{worker}]: persistent_workers=True keeps random state between epochs, expected False"
        )
    num = None if isinstance(loader.dataset, IterableDataset) else length(loader)
    if num == 0:
        raise ValueError(f"loaders[{worker}]: no batches, expected at least one")
    return num
