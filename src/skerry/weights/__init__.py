"""Weights: where the values of full-size tensors come from, one part at a time.

A source is a model (``FromModel``), a seed (``FromInitializer``) or safetensors files (``FromFiles``). Each process
reads only the parts that it stores, so no process needs memory for the full model.
"""

from skerry.model.tensors import skeleton
from skerry.weights.from_files import FromFiles
from skerry.weights.initializer import FromInitializer
from skerry.weights.source import FromModel, Source, materialize

__all__ = ["FromFiles", "FromInitializer", "FromModel", "Source", "materialize", "skeleton"]
