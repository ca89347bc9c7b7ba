"""The learning tasks that methods are compared on: an MLP's sizes, the workers' data, the loss and the test set.

Every script that compares methods takes its task from here, so all start from the same weights and see the same
batches.
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
from skerry.experiments.datasets.loading import load
from skerry.experiments.datasets.speech import speech_commands_12
from skerry.experiments.models.mlp import MLP
from skerry.randomness import seed_of
from skerry.training.worker import LossFn


@dataclass(frozen=True)
class Task:
    """The sizes of an ``MLP``, the workers' data, the loss, and ``test``: inputs and labels."""

    model_sizes: list[int]
    shards: Shards
    loss_fn: LossFn
    test: tuple[Tensor, Tensor]

    def model(self, seed: int) -> MLP:
        """Make the MLP with batch norm; its weights depend only on ``seed`` and the sizes, as in recipes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "model"))
            return MLP(self.model_sizes)


@dataclass(frozen=True)
class _Raw:
    """A data set in memory: ``x`` as stored (uint8), and how to turn a batch of it into the model's input."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    normalize: Callable[[Tensor], Tensor]


def task(name: str, workers: int, hidden: int, layers: int, batch_size: int, seed: int) -> Task:
    """Return the task ``name`` for an MLP with ``layers`` hidden layers of ``hidden`` units; the data is split iid.

    Args:
        name: "speech" (spectrograms, 4096 features, 12 classes), "fashion" (Fashion-MNIST, 784, 10) or "digits"
            (scikit-learn's, 64, 10: no download).
        workers: the number of workers.
        hidden, layers: of the MLP.
        batch_size: per worker.
        seed: of the split and of the order of samples.

    Raises:
        DataError: the data set is not on this machine.
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
    """Google Speech Commands with its official test set, split by speaker, standardized with training statistics."""
    speech = speech_commands_12()
    return _Raw(speech.x_train, speech.y_train, speech.x_test, speech.y_test, speech.num_classes, speech.scaling)


def _images(name: str) -> _Raw:
    """A data set of images, normalized as in the recipes."""
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
