"""The learning tasks that rivals are compared on: data dealt out to workers, sizes of the MLP, loss and test set.

Every script that compares methods gets its task here, so all start from the same weights and see the same batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from skerry.choose import choose
from skerry.data.shards import Shards
from skerry.data.splits import split
from skerry.experiments.datasets.sources import load
from skerry.experiments.datasets.speech import speech_commands
from skerry.experiments.models.mlp import MLP
from skerry.randomness import seed_of
from skerry.training.worker import LossFn


@dataclass(frozen=True)
class Task:
    """What is to be learned: an ``MLP``'s sizes, the workers' data, and ``test``: (inputs, labels) as it wants them."""

    model_sizes: list[int]
    shards: Shards
    loss_fn: LossFn
    test: tuple[Tensor, Tensor]

    def model(self, seed: int) -> MLP:
        """Make the MLP with batch norm; weights depend on ``seed`` and the sizes only (as in recipes)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "model"))
            return MLP(self.model_sizes)


@dataclass(frozen=True)
class _Raw:
    """A data set in memory: ``x`` as stored (uint8), and what makes a batch of it the model's input."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    normalize: Callable[[Tensor], Tensor]


def task(name: str, workers: int, hidden: int, layers: int, batch_size: int, seed: int) -> Task:
    """Return the task ``name`` for an MLP of ``layers`` hidden layers of ``hidden`` units, dealt out iid.

    Args:
        name: "speech" (spectrograms, 4096 features, 12 classes), "fashion" (Fashion-MNIST, 784, 10) or "digits"
            (scikit-learn's, 64, 10: needs no files).

    Raises:
        DataError: the data is not on this machine.
        ValueError: no such task.
    """
    raw = TASKS[choose(name, TASKS, "task")]()
    parts = split(raw.y_train, workers, "iid", seed)
    return Task(
        model_sizes=[raw.x_train[0].numel(), *[hidden] * layers, raw.num_classes],
        shards=Shards(raw.x_train, raw.y_train, parts, batch_size=batch_size, seed=seed, transform=raw.normalize),
        loss_fn=F.cross_entropy,
        test=(raw.normalize(raw.x_test), raw.y_test),
    )


def _speech() -> _Raw:
    """Google Speech Commands, official test set, split by speaker; each feature standardized by the training part."""
    speech = speech_commands()
    return _Raw(speech.x_train, speech.y_train, speech.x_test, speech.y_test, speech.num_classes, speech.standardize)


def _images(name: str) -> _Raw:
    """A data set of ``skerry.data``, normalised as the recipes do."""
    images = load(name)
    return _Raw(
        torch.from_numpy(images.x_train),
        torch.from_numpy(images.y_train),
        torch.from_numpy(images.x_test),
        torch.from_numpy(images.y_test),
        images.num_classes,
        lambda batch: (batch.flatten(1).float() / 255 - images.mean) / images.std,
    )


TASKS: dict[str, Callable[[], _Raw]] = {
    "speech": _speech,
    "fashion": partial(_images, "fashion-mnist"),
    "digits": partial(_images, "digits"),
}
