"""Cuts: the part of each tensor that a worker has, by the units that it holds."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skerry.model.optimizer_state import parameter_of
from skerry.plan.dims import DealtDim, once_per_units
from skerry.plan.table import Plan
from skerry.subnet.index import Cut, Index, cut_shape, whole


class Cuts:
    """The parts of full-size tensors (weights, statistics, optimizer state) that the holder of ``units`` has.

    Args:
        plan: what is dealt out.
        units: int64, (number of units,): global ids of the units that are held.

    Attributes:
        held: bool, (num_units,): whether each unit of the plan is held.
        mask: function of a ``DealtDim``; bool, (size,): whether each index is held. Indices not dealt out are held.
        positions: function of a ``DealtDim``; int64, (size,): where each held index is in the narrow tensor.
    """

    def __init__(self, plan: Plan, units: Tensor) -> None:
        self._plan = plan
        self.held = torch.zeros(plan.num_units, dtype=torch.bool)
        self.held[units] = True
        self.mask = once_per_units(lambda dim: dim.look_up(self.held, True))
        self.positions = once_per_units(lambda dim: self.mask(dim).cumsum(0) - 1)
        self._index = once_per_units(self._index_of)

    def of(self, name: str, shape: torch.Size | None = None) -> Cut | None:
        """Return the part of a tensor that is held; None if the tensor is in a block that is not held.

        Args:
            name: of a tensor or its optimizer state. State of the same shape as its parameter has the same part.
            shape: full size; None: that of the parameter.
        """
        owner = parameter_of(name)
        block = self._plan.block_of(owner)
        if block is not None and not self.held[block]:
            return None
        row = self._plan.row(name, self._plan.shapes[owner] if shape is None else shape)
        return tuple(None if dim is None else self._index(dim) for dim in row)

    def has_whole(self, name: str, shape: torch.Size) -> bool:
        """Tell whether a tensor is held whole."""
        cut = self.of(name, shape)
        return cut is not None and whole(cut)

    def shapes(self, sizes: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Return, by name, the shapes of the parts of full-size tensors that are held."""
        found = {name: self.of(name, size.shape) for name, size in sizes.items()}
        return {name: cut_shape(sizes[name].shape, cut) for name, cut in found.items() if cut is not None}

    def _index_of(self, dim: DealtDim) -> Index | None:
        ids = self.mask(dim).nonzero().flatten()
        return None if len(ids) == len(dim.units) else Index(ids)
