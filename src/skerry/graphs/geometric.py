"""PyTorch Geometric, imported where it is needed and nowhere else."""

import importlib
import warnings
from typing import Any


def geometric(name: str) -> Any:
    """Return the module ``torch_geometric.NAME``; its import warns of nothing.

    Raises:
        ValueError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"torch_geometric.{name}")
        except ImportError as error:
            raise ValueError(
                f"graph networks need PyTorch Geometric ({error}); run: pip install 'skerry[graphs]'"
            ) from None
