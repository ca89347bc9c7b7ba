"""Public data sets: downloaded, verified and cached."""

from skerry.experiments.datasets.cifar import cifar10
from skerry.experiments.datasets.depends import debian_depends
from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.fetch import fetch
from skerry.experiments.datasets.loading import Dataset, cache_folder, load
from skerry.experiments.datasets.speech import speech_commands

__all__ = ["DataError", "Dataset", "cache_folder", "cifar10", "debian_depends", "fetch", "load", "speech_commands"]
