"""Cuts: what a worker that holds some units has of each tensor."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skerry.model.optimizer_state import parameter_of
from skerry.plan.dims import DealtDim, once_per_units
from skerry.plan.table import Plan
from skerry.subnet.index import Cut, Index, cut_shape, whole


class Cuts:
    """What the holder of ``units`` has of each full-size tensor: weights, statistics and optimizer state alike.

    Args:
        plan: what is dealt out.
        units: global ids, int64, of the units that are held.

    Attributes:
        held: for each unit of the plan whether it is held, bool.
        mask: returns for each index of a dim whether it is held, bool; what is not dealt out is.
        positions: returns where each held index of a dim is in the narrow tensor, int64.
    """

    def __init__(self, plan: Plan, units: Tensor) -> None:
        self._plan = plan
        self.held = torch.zeros(plan.num_units, dtype=torch.bool)
        self.held[units] = True
        self.mask = once_per_units(lambda dim: dim.look_up(self.held, True))
        self.positions = once_per_units(lambda dim: self.mask(dim).cumsum(0) - 1)
        self._index = once_per_units(self._index_of)

    def of(self, name: str, shape: torch.Size | None = None) -> Cut | None:
        """Return the part that is held of a tensor; None for one of a block that is not held.

        Args:
            name: of a tensor, or of optimizer state, which follows its parameter if it has that one's shape.
            shape: full size; None: that of the parameter.
        """
        owner = parameter_of(name)
        block = self._plan.block_of(owner)
        if block is not None and not self.held[block]:
            return None
        row = self._plan.row(name, self._plan.shapes[owner] if shape is None else shape)
        return tuple(None if dim is None else self._index(dim) for dim in row)

    def has_whole(self, name: str, shape: torch.Size) -> bool:
        """Tell whether all of a tensor is held."""
        cut = self.of(name, shape)
        return cut is not None and whole(cut)

    def shapes(self, sizes: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Return the shapes of the parts that are held of full-size tensors, by name."""
        found = {name: self.of(name, size.shape) for name, size in sizes.items()}
        return {name: cut_shape(sizes[name].shape, cut) for name, cut in found.items() if cut is not None}

    def _index_of(self, dim: DealtDim) -> Index | None:
        ids = self.mask(dim).nonzero().flatten()
        return None if len(ids) == len(dim.units) else Index(ids)
