"""Data from any ``torch.utils.data.Dataset`` that has a length, including those of Hugging Face ``datasets``.

Samples are read when they are needed, and only by the process of their worker.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from skerry.data.inputs_and_label import LABELS, Columns, inputs_and_label
from skerry.data.sample_order import SampleOrder
from skerry.data.shards import check_part
from skerry.data.splits import split as split_labels
from skerry.model.inputs import Inputs
from skerry.randomness import own_random_state, seed_of


class MapStyle(Protocol):
    """A dataset with a length whose samples are read by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return a sample: a pair (input, label), or a dict of columns."""
        ...


class FromDataset:
    """The data of all workers, read from one dataset; ``from_dataset`` makes it."""

    def __init__(
        self,
        dataset: MapStyle,
        parts: Sequence[Tensor],
        *,
        batch_size: int,
        seed: int,
        inputs: Columns,
        label: str | None,
        collate: Callable[[list[Any]], Any],
    ) -> None:
        for worker, part in enumerate(parts):
            check_part(worker, part, len(dataset))
        self.num_workers, self.batch_size = len(parts), batch_size
        self._dataset, self._parts, self._seed, self._collate = dataset, parts, seed, collate
        self._inputs, self._label = inputs, label
        self._orders = [SampleOrder(len(p), batch_size=batch_size, seed=seed, worker=w) for w, p in enumerate(parts)]

    @property
    def steps_per_pass(self) -> int:
        """Batches in which the worker that has most samples sees each of them once."""
        return -(-max(map(len, self._parts)) // self.batch_size)

    def num_samples(self, worker: int) -> int:
        """Return how many samples ``worker`` has."""
        return len(self._parts[worker])

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Inputs, Any]]:
        """Yield the batches (x, y) of steps first_step .. first_step + num_steps - 1 of ``worker``."""
        for step in range(first_step, first_step + num_steps):
            yield self._read(worker, self._orders[worker].batch(step), step)

    def sample(self, worker: int, num: int) -> Inputs:
        """Return ``num`` inputs of ``worker``, capped at all it has; always the same ones."""
        return self._read(worker, self._orders[worker].sample(num), -1)[0]

    def _read(self, worker: int, order: Tensor, step: int) -> tuple[Inputs, Any]:
        numbers = self._parts[worker][order].tolist()
        with own_random_state(seed_of(self._seed, "read", worker, step)):
            together = getattr(self._dataset, "__getitems__", None)  # as torch's DataLoader does it
            samples = together(numbers) if together else [self._dataset[number] for number in numbers]
            where = f"worker {worker}, {'a sample' if step < 0 else f'step {step}'}"
            return inputs_and_label(self._collate(samples), self._inputs, self._label, where)


def from_dataset(
    dataset: MapStyle,
    *,
    num_workers: int,
    batch_size: int,
    seed: int,
    split: str | Sequence[Tensor] = "iid",
    inputs: Columns = None,
    label: str | None = None,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> FromDataset:
    """Return the data of ``num_workers`` workers, read from a dataset that has a length.

    Batches are a pure function of (seed, worker, step), in the order of ``Shards``, so resume is exact. This includes
    random augmentation in a dataset that only uses torch's random generator. If it uses Python's or numpy's, a resumed
    run sees other augmentations.

    Args:
        dataset: its samples are pairs (input, label), or dicts of columns as in Hugging Face ``datasets``.
        num_workers: the algorithm's number of workers.
        batch_size: samples in each batch of each worker.
        seed: determines the split, the order and the augmentation.
        split: ``"iid"``, ``"by_label"`` or ``"dirichlet:ALPHA"`` (see ``skerry.split``), or the indices of each
            worker's samples. For the last two names every process reads all labels: one column of a Hugging Face
            dataset, otherwise every sample once. If that takes long, pass indices: ``skerry.split(labels, ...)``.
        inputs: for dict samples, the columns to call the model with: one name for its only argument, several for
            keyword arguments. None: all columns but the label, as keyword arguments.
        label: for dict samples, the column with the label; None: ``label`` or ``labels``.
        collate: makes a batch from a list of samples. The default stacks tensors, arrays and numbers.

    Returns:
        An object to pass as the data of ``train``.

    Raises:
        ValueError: the dataset has no length, or the split does not fit; with the first batch: columns do not fit.

    Example:
        >>> import torch
        >>> dataset = torch.utils.data.TensorDataset(torch.arange(6.0), torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> data = from_dataset(dataset, num_workers=2, split="by_label", batch_size=3, seed=0)
        >>> [sorted(x.tolist()) for x, y in data.batches(worker=1, first_step=70, num_steps=1)]
        [[3.0, 4.0, 5.0]]
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"dataset: {type(dataset).__name__} has no length, expected a map-style dataset; for a stream implement "
            "skerry.training.Data, or load it (Hugging Face: streaming=False)"
        )
    if not isinstance(split, str):
        parts = list(split)
        if len(parts) != num_workers:
            raise ValueError(f"split: indices for {len(parts)} workers, expected num_workers={num_workers}")
    else:
        labels = range(len(dataset)) if split == "iid" else _labels(dataset, label)
        parts = split_labels(np.asarray(labels), num_workers, split, seed)
    return FromDataset(dataset, parts, batch_size=batch_size, seed=seed, inputs=inputs, label=label, collate=collate)


def _labels(dataset: Any, label: str | None) -> Any:
    columns = getattr(dataset, "column_names", None) or ()
    first = dataset[0] if len(dataset) else ()
    label = label or next((name for name in LABELS if name in (columns or first)), LABELS[0])
    if label in columns:
        return [int(value) for value in dataset[label]]
    if columns:
        raise ValueError(f"label: no column '{label}', expected one of {', '.join(columns)}; give label=")
    samples = (dataset[number] for number in range(len(dataset)))
    return [int(sample[label] if isinstance(sample, Mapping) else sample[1]) for sample in samples]
