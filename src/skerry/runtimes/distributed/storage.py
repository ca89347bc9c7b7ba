"""Storage: a part of each full-size tensor, read and written by the indices of the full-size tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from skerry.exchange.owners import owned_cut
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut, Index
from skerry.subnet.slicing import put_, take


class Storage(Protocol):
    """A part of each full-size tensor.

    Attributes:
        tensors: the parts, by name.
    """

    tensors: Mapping[str, Tensor]

    def local(self, name: str, shape: torch.Size, cut: Cut) -> Cut:
        """Return where the stored part has the elements ``cut`` of the full-size tensor ``name`` of ``shape``."""
        ...


def read(storage: Storage, name: str, shape: torch.Size, cut: Cut) -> Tensor:
    """Return a copy of the elements ``cut`` of the full-size tensor."""
    return take(storage.tensors[name], storage.local(name, shape, cut))


def write_(storage: Storage, name: str, shape: torch.Size, cut: Cut, values: Tensor) -> None:
    """Write ``values`` into the elements ``cut`` of the full-size tensor."""
    place = storage.tensors[name]
    put_(place, values.to(place.device), storage.local(name, shape, cut))


@dataclass(eq=False)
class InSubnet:
    """The narrow tensors of the subnet that has ``cuts``."""

    plan: Plan
    cuts: Cuts
    tensors: Mapping[str, Tensor]

    def local(self, name: str, shape: torch.Size, cut: Cut) -> Cut:
        """Return the places in the narrow tensor."""
        row = self.plan.row(name, shape) or (None,) * len(shape)
        return tuple(
            index if dim is None or index is None else Index(self.cuts.positions(dim)[index.ids])
            for dim, index in zip(row, cut, strict=True)
        )


@dataclass(eq=False)
class Owned:
    """The parts that ``worker`` owns of tensors whose elements may be in no subnet (``exchange/owners.py``)."""

    plan: Plan
    worker: int
    num_workers: int
    tensors: Mapping[str, Tensor]

    def local(self, name: str, shape: torch.Size, cut: Cut) -> Cut:
        """Return the places in the owned part."""
        owned = owned_cut(self.plan, name, shape, self.worker, self.num_workers)
        assert owned is not None
        return tuple(
            index if run is None or index is None else Index(index.ids - run.first)
            for index, run in zip(cut, owned, strict=True)
        )
