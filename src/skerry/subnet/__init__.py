"""Subnets: the narrow module a worker trains, cut out of the full model and written back."""

from skerry.subnet.extract import extract, write_back
from skerry.subnet.masked import masked

__all__ = [
    "extract",
    "masked",
    "write_back",
]
