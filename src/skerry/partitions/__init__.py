"""Partitions: which worker holds which units in a round."""

from skerry.partitions.assignment import Assignment, Partition
from skerry.partitions.covering import Covering
from skerry.partitions.cyclic import Cyclic
from skerry.partitions.disjoint import Disjoint
from skerry.partitions.everything import Everything
from skerry.partitions.exposures import Exposure, exposure
from skerry.partitions.fractional import Nested, Rolling, Sampled
from skerry.partitions.limited import Limited
from skerry.partitions.share import Share
from skerry.partitions.warmup import Warmup

__all__ = [
    "Assignment", "Covering", "Cyclic", "Disjoint", "Everything", "Exposure", "Limited", "Nested", "Partition",
    "Rolling", "Sampled", "Share", "Warmup", "exposure",
]  # fmt: skip
