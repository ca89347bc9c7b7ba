"""Merge: put the pieces of all workers together again, and make the full model ready to use."""

from skerry.merge.aggregate import aggregate_
from skerry.merge.calibrate import calibrate
from skerry.merge.outer import Outer

__all__ = [
    "Outer",
    "aggregate_",
    "calibrate",
]
