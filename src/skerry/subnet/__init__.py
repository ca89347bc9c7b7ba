"""Subnets: the narrow module a worker trains, cut out of the full model and written back."""

from skerry.subnet.extract import extract, write_back
from skerry.subnet.index import Index
from skerry.subnet.masked import masked
from skerry.subnet.side_by_side import SideBySide

__all__ = [
    "Index",
    "SideBySide",
    "extract",
    "masked",
    "write_back",
]
