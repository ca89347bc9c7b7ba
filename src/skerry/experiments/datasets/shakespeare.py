"""A text as numbers of its characters, for language models."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.experiments.datasets.archives import made_file


@dataclass(frozen=True, eq=False)
class Characters:
    """A text in memory; ``vocabulary`` has its characters in order, the others are int64 numbers in it."""

    vocabulary: str
    train: Tensor
    val: Tensor


def shakespeare() -> Characters:
    """Return the text that ``fetch`` was given, or the frozen one: 1.1 MB of Shakespeare. The last tenth validates.

    Raises:
        DataError: neither is on this machine.
    """
    text = made_file("shakespeare").read_bytes().decode()
    vocabulary = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    whole = torch.tensor([numbers[character] for character in text])
    end = len(text) - len(text) // 10
    return Characters(vocabulary, whole[:end], whole[end:])
