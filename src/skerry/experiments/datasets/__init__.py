"""Public data sets: downloaded or made from public originals, verified and cached."""

from skerry.experiments.datasets.cifar import cifar10, cifar10_jpeg
from skerry.experiments.datasets.depends import debian_depends
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.fetch import fetch
from skerry.experiments.datasets.graphs import citeseer, cora, wordnet
from skerry.experiments.datasets.loading import Dataset, cache_folder, load
from skerry.experiments.datasets.speech import speech_commands, speech_commands_12
from skerry.experiments.datasets.texts import python_docs, shakespeare

__all__ = [
    "DataError", "Dataset", "cache_folder", "cifar10", "cifar10_jpeg", "citeseer", "cora", "debian_depends", "fetch",
    "load", "python_docs", "shakespeare", "speech_commands", "speech_commands_12", "wordnet",
]  # fmt: skip
