"""Data: where data sets come from, how samples are dealt to workers, and in which order they are seen."""

from skerry.data.cifar import cifar10
from skerry.data.datasets import FromDataset, from_dataset
from skerry.data.depends import debian_depends
from skerry.data.errors import DataError
from skerry.data.fetch import fetch
from skerry.data.loaders import FromLoaders, from_loaders
from skerry.data.shards import Shards
from skerry.data.sources import Dataset, cache_folder, load
from skerry.data.speech import speech_commands
from skerry.data.splits import split

__all__ = [
    "DataError", "Dataset", "FromDataset", "FromLoaders", "Shards", "cache_folder", "cifar10", "debian_depends",
    "fetch", "from_dataset", "from_loaders", "load", "speech_commands", "split",
]  # fmt: skip
