"""Subnets: the narrow module that a worker trains, extracted from the full model and written back into it.

``extract.py`` makes it, ``adapters.py`` fits modules of PyTorch and other libraries to their narrow tensors, and
``masked.py`` defines what it must compute. ``index.py``, ``cuts.py`` and ``slicing.py`` say which part of a tensor a
worker has, and read and write it. ``side_by_side.py`` has the result of ``relay`` and ``ensemble``. ``prune.py`` keeps
the strongest units of a trained model.
"""

from skerry.subnet.extract import extract, write_back
from skerry.subnet.index import Index
from skerry.subnet.masked import masked
from skerry.subnet.prune import prune
from skerry.subnet.side_by_side import Mixture, SideBySide

__all__ = ["Index", "Mixture", "SideBySide", "extract", "masked", "prune", "write_back"]
