"""How PyTorch Geometric initializes its layers, told from their names alone: it is not imported."""

import math
from typing import Any

import torch

from skerry.weights.rows import Constant, Fill, Uniform, inverse_root

_WITH_BIAS_OF_ZEROS = ("GCNConv", "GATConv", "GATv2Conv", "SuperGATConv")


def pyg_init(module: Any, own: str, shape: torch.Size) -> Fill | None:
    """Return how a linear layer or a convolution of PyTorch Geometric initializes a tensor; None if it is not known.

    Args:
        module: the ``nn.Module`` that has the tensor.
        own: the tensor's name in it.
        shape: its full size.
    """
    kind = type(module)
    if not kind.__module__.startswith("torch_geometric.nn."):
        return None
    xavier = math.sqrt(6) * inverse_root(sum(shape[-2:]))
    if kind.__name__ == "Linear" and own == "weight":
        return Uniform(xavier if module.weight_initializer == "glorot" else inverse_root(module.in_channels))
    if kind.__name__ == "Linear" and own == "bias":
        return Constant(0) if module.bias_initializer == "zeros" else Uniform(inverse_root(module.in_channels))
    if kind.__name__ in _WITH_BIAS_OF_ZEROS:
        return Constant(0) if own == "bias" else Uniform(xavier) if own.startswith("att") else None
    return None
