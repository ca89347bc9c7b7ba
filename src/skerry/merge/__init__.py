"""Merge: put the pieces of all workers together, and make the full model ready to use.

``aggregate.py`` averages elements over their holders, ``outer.py`` has DiLoCo's outer optimizer, and ``calibrate.py``
turns the aggregated weights into a full model that can be evaluated and exported. ``fit_scale.py`` fits to data what
calibration expects on average.
"""

from skerry.merge.aggregate import aggregate_
from skerry.merge.calibrate import calibrate
from skerry.merge.fit_scale import fit_scale
from skerry.merge.outer import Outer

__all__ = ["Outer", "aggregate_", "calibrate", "fit_scale"]
