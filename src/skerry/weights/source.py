"""TODO."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from skerry.model.tensors import fill_, named_tensors
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cut, Index, cut_shape, take


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


class ZeroBetween:
    """Another source, with zeros for what no worker holds: of disjoint subnets, what lies between two of them.

    The full model is then nothing but its subnets side by side: it sums up what each of them computes by itself.
    """

    def __init__(self, source: Source, plan: Plan, assignment: Assignment) -> None:
        self._source, self._plan, self._assignment = source, plan, assignment

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of ``name``."""
        part = self._source.read(name, cut)
        shape = self._plan.shapes[name]
        row, block = self._plan.row(name, shape), self._plan.block_of(name)
        held = torch.zeros((), dtype=torch.bool)
        always = torch.ones(self._assignment.num_workers, 1, dtype=torch.bool)
        for having in torch.cat([self._assignment.held, always], 1):  # unit id -1 looks at the last
            own = torch.ones((), dtype=torch.bool) if block is None else having[block]
            for dim, dealt in enumerate(row):
                if dealt is not None:
                    units = dealt.units[_indices(cut[dim] if cut else None, shape[dim])]
                    own = own & having[units].view([-1 if d == dim else 1 for d in range(len(shape))])
            held = held | own
        return torch.where(held, part, torch.zeros_like(part))


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
