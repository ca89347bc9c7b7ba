"""Where the values of full-size tensors come from, a part at a time."""

from skerry.model.tensors import skeleton
from skerry.weights.from_files import FromFiles
from skerry.weights.initializer import FromInitializer
from skerry.weights.source import FromModel, Source, materialize

__all__ = [
    "FromFiles",
    "FromInitializer",
    "FromModel",
    "Source",
    "materialize",
    "skeleton",
]
