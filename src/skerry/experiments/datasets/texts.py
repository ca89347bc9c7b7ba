"""Texts for language models: Shakespeare as numbers of its characters, and the documentation of Python."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from skerry.experiments.datasets.archives import made_file
from skerry.experiments.datasets.originals.text import read_text


@dataclass(frozen=True, eq=False)
class Characters:
    """A text in memory; ``vocabulary`` has its characters in order, the others are int64 numbers in it."""

    vocabulary: str
    train: Tensor
    val: Tensor


def shakespeare(file: str = "") -> Characters:
    """Return the text in ``file``; if that is empty, the one that ``fetch`` was given, or the frozen 1.1 MB.

    The last tenth validates.

    Raises:
        DataError: it is not there, too short, or not UTF-8.
    """
    text = _text(file, "shakespeare")
    vocabulary = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    whole = torch.tensor([numbers[character] for character in text])
    end = len(text) - len(text) // 10
    return Characters(vocabulary, whole[:end], whole[end:])


def python_docs(file: str = "") -> str:
    """Return the text in ``file``; if that is empty, the one that ``fetch`` made: the documentation of Python 3.11.

    Raises:
        DataError: it is not there, too short, or not UTF-8.
    """
    return _text(file, "python-docs")


def _text(file: str, name: str) -> str:
    return read_text(Path(file).expanduser() if file else made_file(name))
