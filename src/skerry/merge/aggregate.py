"""Aggregate: put the pieces of all workers together.

Each element of the full model becomes the mean over the workers that held it. An element without a holder keeps its
bits. An element with one holder is copied, so disjoint subnets lose nothing to rounding. Integers (batch norm's count
of batches) are taken from the first holder. A refused piece (of a worker whose loss or weights are not finite) does not
count.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skerry.model.device import wide
from skerry.partitions.assignment import Assignment
from skerry.plan.dims import DealtDim, once_per_units
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut, whole
from skerry.subnet.slicing import put_, take

_SLAB = 2**22
"""Elements that are averaged at a time."""

Piece = Mapping[str, Tensor]
"""A worker's narrow tensors by name: parameters, buffers and, if it travels, optimizer state."""


def is_finite(piece: Piece) -> bool:
    """Tell whether every element of ``piece`` is finite."""
    numbers = [t for t in piece.values() if t.numel()]
    numbers = [torch.view_as_real(t) if t.is_complex() else t for t in numbers if not is_exact(t)]
    # The extremes are NaN where any element is; one pass, no temporary as large as the tensor. A device is asked once.
    extremes: dict[torch.device, list[Tensor]] = {}
    for t in numbers:
        extremes.setdefault(t.device, []).extend(extreme.isfinite() for extreme in torch.aminmax(t))
    return all(bool(torch.stack(found).all()) for found in extremes.values())


def is_exact(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` has integers or booleans, which are not averaged and always finite."""
    return not (tensor.is_floating_point() or tensor.is_complex())


@torch.no_grad()
def aggregate_(
    full: Mapping[str, Tensor],
    plan: Plan,
    assignment: Assignment,
    pieces: Sequence[Piece | None],
    weights: Sequence[int] | None = None,
) -> None:
    """Average the pieces of all workers into the full-size tensors, in place:

        full[e] = mean of piece_w[e] over the workers w that hold element e,

    or with ``weights`` a_w their mean by weight, sum_w a_w piece_w[e] / sum_w a_w.

    Args:
        full: the full-size tensors by name.
        plan: the plan that the pieces were extracted by.
        assignment: who held which units.
        pieces: one per worker, in order; None for a refused one.
        weights: a positive whole number per worker, of those that are not refused; None: all have the same.

    Example:
        >>> from skerry.partitions import Everything
        >>> full, plan = {"weight": torch.zeros(2)}, Plan((), {}, {"weight": torch.Size([2])})
        >>> pieces = [{"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.tensor([3.0, 4.0])}]
        >>> aggregate_(full, plan, Everything(2).assign(plan.axes, 0), pieces)
        >>> full["weight"]
        tensor([2., 3.])
    """
    there = [(w, piece) for w, piece in enumerate(pieces) if piece is not None]
    present = [(piece, Cuts(plan, assignment.units(w))) for w, piece in there]
    own = [1 if weights is None else weights[w] for w, _ in there]

    @once_per_units
    def has_one_holder(dim: DealtDim) -> bool:
        masks = [cuts.mask(dim) for _, cuts in present]
        return bool((torch.stack(masks).sum(0) <= 1).all()) if masks else True

    for name, tensor in full.items():
        row = plan.row(name, tensor.shape)
        found = [(piece, cuts.of(name, tensor.shape), a) for (piece, cuts), a in zip(present, own, strict=True)]
        parts = [(piece[name], cut, a) for piece, cut, a in found if cut is not None]
        one_holder = any(dim is not None and has_one_holder(dim) for dim in row)
        if one_holder or len(parts) == 1 or is_exact(tensor):
            for part, cut, _ in reversed(parts):  # so that the first worker's integers stay
                put_(tensor, part, cut)
        elif parts:
            _put_mean_(tensor, parts)


def _put_mean_(tensor: Tensor, parts: Sequence[tuple[Tensor, Cut, int]]) -> None:
    # In float64 the mean of equal float32 values is that value; -0.0 + x == x and 1 * x == x to the bit for every x.
    if all(whole(cut) for _, cut, _ in parts):
        each, weights = [part.reshape(-1) for part, _, _ in parts], [a for _, _, a in parts]
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
        for begin in range(0, tensor.numel(), _SLAB):  # so that wide numbers take little memory
            slabs = [part[begin : begin + _SLAB] for part in each]
            total = weights[0] * slabs[0].to(wide(tensor))
            for slab, a in zip(slabs[1:], weights[1:], strict=True):
                total = total + (slab if a == 1 else a * slab.to(total.dtype))
            flat[begin : begin + _SLAB] = total / sum(weights)
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))
        return
    total = torch.full(tensor.shape, -0.0, dtype=wide(tensor), device=tensor.device)
    count = torch.zeros(tensor.shape, dtype=torch.int64, device=tensor.device)
    for part, cut, a in parts:
        put_(total, take(total, cut) + a * part.to(total.dtype), cut)
        put_(count, take(count, cut) + a, cut)
    tensor.copy_(torch.where(count > 0, total / count, tensor))
