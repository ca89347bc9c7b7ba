"""Labels: what discovery knows of a tensor, and how labels are joined.

Every index of every parameter dim has a label, a number. A *field* says for a tensor which label each element has: an
int64 tensor with as many dims as the tensor, of size 1 along dims it does not depend on. An element exists in a subnet
only if its labels are held. Label 0 is what every worker has. Labels that must be held together are joined; what is
joined in the end is a unit (``units.py``), and what is joined with 0 is not dealt out.

Some situations would let a field depend on two dims at once, which no narrow (rectangular) tensor can follow. Then the
*outermost* dim carries the units and the inner ones belong to each unit whole: heads before the dims of a head,
channels before the pixels of a channel. That is a convention, not a proof: it can cost units, never correctness. Where
it did for the sake of dims that are not dealt out in the end, a second trace leaves their labels out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

Origin = tuple[str, int]
"""A dim of a parameter or buffer: (name, dim)."""


@dataclass(frozen=True, eq=False)
class Field:
    """The labels of a tensor's elements, and which parameter dims they are those of (while it is still a weight)."""

    ids: Tensor
    origins: frozenset[Origin] = frozenset()

    @property
    def dims(self) -> frozenset[int]:
        """The dims along which the labels vary."""
        return frozenset(d for d, size in enumerate(self.ids.shape) if size > 1)


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of a tensor.

    Attributes:
        fields: its fields, no two of which vary along the same dim. A dim along which none varies has a fixed size.
        uniform: made by a factory, with one value everywhere (zeros, a mask of ones): it goes with any width.
        weight: computed from parameters alone, and zero where the parameters are.
    """

    fields: tuple[Field, ...] = ()
    uniform: bool = False
    weight: bool = False

    def along(self, dim: int) -> Field | None:
        """The field that varies along ``dim``."""
        return next((f for f in self.fields if dim in f.dims), None)


Why = Literal["shape", "statistic"]
"""Why labels are joined: or else the operation would not run; or else its result would be another, which matters only
if the result is used."""


@dataclass(frozen=True, eq=False)
class Edge:
    """Labels ``a[k]`` and ``b[k]`` must be held together, says operation number ``op``."""

    a: Tensor
    b: Tensor
    op: int
    why: Why


@dataclass
class Bonds:
    """What the operations of a forward demand of labels, each with the number of the operation that demands it."""

    now: int = -1
    edges: list[Edge] = field(default_factory=list)
    outermost: list[tuple[Tensor, int]] = field(default_factory=list)
    prefixes: list[tuple[Tensor, int, tuple[int, ...], int]] = field(default_factory=list)
    roles: list[tuple[Origin, str, int]] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    preferred: list[Tensor] = field(default_factory=list)

    def join(self, a: Tensor, b: Tensor, why: Why = "shape") -> None:
        """Labels ``a`` and ``b`` (broadcast) must be held together."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        differ = a != b
        if bool(differ.any()):
            pairs = torch.unique((a[differ] << 32) | b[differ])  # two labels in one number sort faster than pairs
            self.edges.append(Edge(pairs >> 32, pairs & 0xFFFFFFFF, self.now, why))

    def pin(self, fields: Iterable[Field], why: Why = "shape") -> None:
        """These labels are everybody's."""
        for one in fields:
            self.join(one.ids, torch.zeros((), dtype=torch.int64), why)

    def collapse(self, one: Field | None, dims: Iterable[int], why: Why = "shape") -> Field | None:
        """Join the labels along ``dims``; return the field that is left, None where nothing varies any more.

        Labels that are joined along everything they vary along are one unit, which nobody could do without.
        """
        over = sorted(set(dims) & one.dims) if one is not None else []
        if one is None or not over:
            return one
        rest = one.ids.amin(over, keepdim=True)
        self.join(one.ids, rest, why)
        left = replace(one, ids=rest)
        if not left.dims:
            self.pin([left], why)
            return None
        return left

    def collapse_all(self, fields: Iterable[Field], dims: Iterable[int], why: Why = "shape") -> tuple[Field, ...]:
        """Collapse each of ``fields`` along ``dims``."""
        over = set(dims)
        return tuple(left for one in fields if (left := self.collapse(one, over, why)) is not None)

    def varying(self, labels: Labels) -> Labels:
        """Drop fields that vary along nothing: a tensor that is one unit's as a whole is something nobody can lack."""
        fields = [replace(one, ids=compact(one.ids)) for one in labels.fields]
        self.pin(one for one in fields if not one.dims)
        return replace(labels, fields=tuple(one for one in fields if one.dims))

    def unify(self, inputs: Sequence[tuple[Labels, frozenset[int]]]) -> tuple[Field, ...]:
        """Return the fields of an element-by-element result of ``inputs``: labels, aligned, and their wide dims.

        A dim that is wide (not broadcast) in one of the inputs and has no field there has a fixed size, so the fields
        of the others must not vary along it. Fields that vary along the same dims are joined.
        """
        fields = [list(labels.fields) for labels, _ in inputs]
        wide = [dims for _, dims in inputs]
        while self._collapse_fixed(fields, wide) or self._collapse_crossing(fields):
            pass
        merged: dict[frozenset[int], Field] = {}
        for one in (f for own in fields for f in own):
            if one.dims in merged:
                before = merged[one.dims]
                self.join(before.ids, one.ids)
                one = Field(before.ids, before.origins | one.origins)
            merged[one.dims] = one
        return tuple(merged.values())

    def _collapse_fixed(self, fields: list[list[Field]], wide: Sequence[frozenset[int]]) -> bool:
        """Collapse along dims of fixed size; tell whether anything was."""
        fixed = {d for own, dims in zip(fields, wide, strict=True) for d in dims if not any(d in f.dims for f in own)}
        if not any(f.dims & fixed for own in fields for f in own):
            return False
        fields[:] = [list(self.collapse_all(own, fixed)) for own in fields]
        return True

    def _collapse_crossing(self, fields: list[list[Field]]) -> bool:
        """Make one pair of fields that share some dims but not all agree; tell whether there was one.

        If the outermost dim either varies along is common, both keep the common dims. Otherwise the common dims belong
        to each unit of the outermost dim whole (a weight over the dims of a head is every head's), so both lose them.
        """
        flat = [(k, f) for k, own in enumerate(fields) for f in own]
        for n, (k, a) in enumerate(flat):
            for m, b in flat[n + 1 :]:
                common = a.dims & b.dims
                if common and a.dims != b.dims:
                    outermost = min(a.dims | b.dims) in common
                    for owner, one in ((k, a), (m, b)):
                        left = self.collapse(one, one.dims - common if outermost else common)
                        self.preferred.extend([left.ids] if left is not None else [])
                        at = fields[owner].index(one)
                        fields[owner][at : at + 1] = [] if left is None else [left]
                    return True
        return False

    def mark(self, fields: Iterable[Field], role: str) -> None:
        """Note that these fields' parameter dims make units ("out") or read them ("in")."""
        for one in fields:
            self.roles.extend((origin, role, self.now) for origin in one.origins)

    def used(self, fields: Iterable[Field]) -> tuple[Field, ...]:
        """The same fields in an activation: their parameter dims have made units."""
        fields = tuple(fields)
        self.mark(fields, "out")
        return tuple(Field(one.ids) for one in fields)


def padded(one: Field, num_dims: int) -> Field:
    """The field of a tensor that is broadcast to ``num_dims`` dims."""
    return replace(one, ids=one.ids.view((1,) * (num_dims - one.ids.dim()) + one.ids.shape))


def compact(ids: Tensor) -> Tensor:
    """Shrink the dims along which ``ids`` does not vary to size 1."""
    for d in range(ids.dim()):
        first = ids.narrow(d, 0, 1)
        if ids.shape[d] > 1 and bool((ids == first).all()):
            ids = first
    return ids


def reshaped(ids: Tensor, old: torch.Size, new: torch.Size) -> Tensor:
    """The labels of a tensor of shape ``old`` after a view as ``new``; only the regrouped dims are spelled out."""
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
