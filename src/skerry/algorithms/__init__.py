"""Published methods and honest rivals, each a choice of the parts."""

from skerry.algorithms.ist import ist
from skerry.algorithms.local_sgd import local_sgd
from skerry.algorithms.narrow import narrow
from skerry.algorithms.single import single

__all__ = ["ist", "local_sgd", "narrow", "single"]
