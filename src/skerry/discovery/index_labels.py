"""Labels: which parameter indices each element of a tensor depends on.

Every index of every parameter dim gets a label, a number. A *field* gives the label of each element of a tensor: an
int64 tensor with as many dims as that tensor, of size 1 along the dims the label does not depend on. A subnet has an
element only if it holds the element's labels. Label 0 is held by every worker.

Each operation of a forward adds constraints (``constraints.py``): some labels must be held together. Labels that end up
joined are one unit (``unit_solver.py``). Labels joined with 0 are not dealt out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Origin = tuple[str, int]
"""A dim of a parameter or buffer: (name, dim)."""


@dataclass(frozen=True, eq=False)
class Field:
    """The labels of a tensor's elements.

    Attributes:
        ids: the label of each element, broadcast against the tensor.
        origins: the parameter dims whose labels these are; empty once the tensor is an activation, but for the product
            of an activation and a weight: those of the weight.
        free: the tensor was broadcast along the dims that the labels vary along, so its values do not depend on them.
    """

    ids: Tensor
    origins: frozenset[Origin] = frozenset()
    free: bool = False

    @property
    def dims(self) -> frozenset[int]:
        """The dims along which the labels vary."""
        return frozenset(d for d, size in enumerate(self.ids.shape) if size > 1)


@dataclass(frozen=True, eq=False)
class Labels:
    """All that discovery knows about a tensor.

    Attributes:
        fields: its fields; no two vary along the same dim. A dim along which no field varies has a fixed size.
        uniform: the tensor has one value everywhere (zeros, a mask of ones), so it fits any width.
        weight: the tensor is computed from parameters alone, and is zero where they are zero.
    """

    fields: tuple[Field, ...] = ()
    uniform: bool = False
    weight: bool = False

    def along(self, dim: int) -> Field | None:
        """Return the field that varies along ``dim``, None if there is none."""
        return next((f for f in self.fields if dim in f.dims), None)


def map_ids(fields: Iterable[Field], move: Callable[[Tensor], Tensor]) -> tuple[Field, ...]:
    """Apply ``move`` to the labels of each field."""
    return tuple(replace(one, ids=move(one.ids)) for one in fields)


def padded(one: Field, num_dims: int) -> Field:
    """Return the field of a tensor that is broadcast to ``num_dims`` dims."""
    return replace(one, ids=one.ids.view((1,) * (num_dims - one.ids.dim()) + one.ids.shape))


def compact(ids: Tensor) -> Tensor:
    """Shrink the dims along which ``ids`` does not vary to size 1."""
    for d in range(ids.dim()):
        if ids.shape[d] > 1 and bool((ids == (first := ids.narrow(d, 0, 1))).all()):
            ids = first
    return ids


def reshaped(ids: Tensor, old: torch.Size, new: torch.Size) -> Tensor:
    """Return the labels of a tensor of shape ``old`` after a view as ``new``; only regrouped dims are expanded."""
    full, wide = [1] * len(old), [1] * len(new)
    i = j = 0
    while i < len(old) or j < len(new):
        begin, end = i, j
        a, b = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        i, j = i + (i < len(old)), j + (j < len(new))
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        if any(ids.shape[d] > 1 for d in range(begin, min(i, len(old)))):
            full[begin:i], wide[end:j] = old[begin:i], new[end:j]
    return compact(ids.expand(full).reshape(wide))
