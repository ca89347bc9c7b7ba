"""TODO."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from skerry.model.tensors import fill_, named_tensors
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cut, Index, cut_shape, cuts, take


class Source(Protocol):
    """Where the values of full-size tensors come from."""

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return, as a new CPU tensor, the part of the full-size tensor ``name`` that ``cut`` names (see ``take``).

        ``name`` is the tensor's first name in the model; a tied tensor's other names are not known.
        """


class FromModel:
    """The tensors of a model that has real ones, as they are when they are read."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = named_tensors(model)
        for name, tensor in self._tensors.items():
            if tensor.is_meta:
                raise ValueError(f"{name} is on meta and has no values; start from FromInitializer or FromFiles")

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return a copy of the part of ``name``."""
        return take(self._tensors[name], cut).cpu()


class FromSubnets:
    """The tensors of subnets side by side (``subnet/side_by_side.py``), each cut out of a source of the full model.

    Args:
        source: of the full model that they are cut out of.
        plan: its plan.
        nets: for each subnet the global ids of its units.
    """

    def __init__(self, source: Source, plan: Plan, nets: Sequence[Tensor]) -> None:
        self._source = source
        self._cuts = [cuts(plan, units) for units in nets]

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of ``name``."""
        _, net, own = name.split(".", 2)  # nets.K.NAME
        return take(self._source.read(own, self._cuts[int(net)].get(own, ()) or ()), cut)


_SLAB_BYTES = 2**23
"""Rows of a large tensor that are made or read at a time, in bytes."""


def _by_slabs(shape: torch.Size, dtype: torch.dtype, cut: Cut, slab: Callable[[Tensor, Cut], Tensor]) -> Tensor:
    """Put a part together from slabs; ``slab(rows, rest)`` is ``rows`` of dim 0, cut by ``rest`` in the other dims."""
    out = torch.empty(cut_shape(shape, cut), dtype=dtype, device="cpu")
    if out.numel() == 0:
        return out
    first, *rest = cut or (None,)
    rows = _indices(first, shape[0])
    step = max(1, _SLAB_BYTES // max(1, shape[1:].numel() * max(4, dtype.itemsize)))
    begin = 0
    while begin < len(rows):  # rows[begin:end] lie within ``step`` neighbouring rows of the full tensor
        end = int(torch.searchsorted(rows, rows[begin] + step))
        out[begin:end] = slab(rows[begin:end], tuple(rest))
        begin = end
    return out


def _indices(index: Index | None, size: int) -> Tensor:
    if isinstance(index, Tensor):
        return index.cpu()
    runs = (slice(0, size),) if index is None else index
    return torch.cat([torch.arange(run.start, run.stop, device="cpu") for run in runs])


def materialize(model: nn.Module, source: Source) -> nn.Module:
    """Give ``model`` (on meta) the tensors of ``source``, whole and on the CPU; tied ones stay tied. Returns ``model``.

    Example:
        >>> with torch.device("meta"):
        ...     model = nn.Linear(4, 3)
        >>> materialize(model, FromInitializer(model, seed=0))(torch.ones(4)).shape
        torch.Size([3])
    """
    return fill_(model, {name: source.read(name) for name in named_tensors(model)})
