"""Training inputs that are changed at random, such as images that are cropped and flipped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from skerry.data.shards import Shards
from skerry.randomness import generator

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``augment(x, rng)``: a batch of inputs, changed as ``rng`` draws."""

PAD = 4


@dataclass(frozen=True)
class Augmented:
    """``shards`` whose training batches are changed at random; ``sample``, to calibrate with, is not.

    What is drawn is a pure function of (seed, worker, step): resume is exact, and every runtime has the same batches.
    """

    shards: Shards
    augment: Augment
    seed: int

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return self.shards.num_workers

    @property
    def batch_size(self) -> int:
        """Samples in each batch of each worker."""
        return self.shards.batch_size

    def batches(self, worker: int, first_step: int, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches (x, y) of steps ``first_step ...`` of ``worker``."""
        for step, (x, y) in enumerate(self.shards.batches(worker, first_step, num_steps), first_step):
            yield self.augment(x, generator(self.seed, "augment", worker, step)), y

    def sample(self, worker: int, num: int) -> Tensor:
        """Return inputs of ``worker``, unchanged."""
        return self.shards.sample(worker, num)


def crops_and_flips(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return a random crop of each image, padded by 4 zeros on each side, to its size; half of them are mirrored.

    Args:
        images: (B, C, H, W), with mean 0.
        rng: draws the corner of each crop, and which are mirrored.

    References: He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2.
    """
    num, channels, height, width = images.shape
    top, left = torch.randint(2 * PAD + 1, (2, num, 1), generator=rng)
    mirrored = torch.rand(num, 1, generator=rng) < 0.5
    across = torch.arange(width)
    rows, columns = top + torch.arange(height), left + torch.where(mirrored, across.flip(0), across)
    image, channel = torch.arange(num)[:, None, None, None], torch.arange(channels)[:, None, None]
    return F.pad(images, [PAD] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
