"""Partitions: which worker holds which units in a round."""

from skerry.partitions.assignment import Assignment, Partition
from skerry.partitions.covering import Covering
from skerry.partitions.disjoint import Disjoint
from skerry.partitions.everything import Everything
from skerry.partitions.fractional import Nested, Rolling, Sampled
from skerry.partitions.overlapping import Overlapping
from skerry.partitions.relay import Relay
from skerry.partitions.warmup import Warmup

__all__ = [
    "Assignment",
    "Covering",
    "Disjoint",
    "Everything",
    "Nested",
    "Overlapping",
    "Partition",
    "Relay",
    "Rolling",
    "Sampled",
    "Warmup",
]
