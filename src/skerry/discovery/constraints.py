"""Constraints: which labels must be held together, as the operations of one forward demand it.

Some operations would make a label depend on two dims at once. No narrow (rectangular) tensor can represent that. Then
the *outermost* dim carries the units, and each unit has the inner dims whole: heads before the dims of a head, channels
before the pixels of a channel. This is a convention, not a proof. It can cost units but never correctness. Where it
dropped labels in favour of dims that are not dealt out in the end, a second trace gives those dims no labels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from skerry.discovery.index_labels import Field, Labels, Origin, compact

Why = Literal["shape", "statistic"]
"""Why labels are joined: without it the operation would not run ("shape"), or it would give another result
("statistic"), which matters only if the result is used."""


@dataclass(frozen=True, eq=False)
class Edge:
    """Labels ``a[k]`` and ``b[k]`` must be held together because of operation number ``op``."""

    a: Tensor
    b: Tensor
    op: int
    why: Why


@dataclass
class Constraints:
    """What the operations of a forward demand of labels, each with the number of the operation that demands it.

    Attributes:
        op: the number of the operation that is running.
        edges: labels to hold together.
        outermost: (ids, op): the units among ``ids`` must lie along its outermost varying dim.
        even_cuts: (ids, dim, ends, op): ``dim`` is cut at ``ends``, so each part needs the same share of every unit.
        roles: (parameter dim, "in" or "out", op): the dim sums over units, or makes them.
        heads: labels that an attention softmax treats one by one.
        preferred: labels that were kept, by convention, where others had to be dropped.
        pinned: fields that had to be given up whole, as none of their labels may vary.
    """

    op: int = -1
    edges: list[Edge] = field(default_factory=list)
    outermost: list[tuple[Tensor, int]] = field(default_factory=list)
    even_cuts: list[tuple[Tensor, int, tuple[int, ...], int]] = field(default_factory=list)
    roles: list[tuple[Origin, str, int]] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    preferred: list[Tensor] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)

    def join(self, a: Tensor, b: Tensor, why: Why = "shape") -> None:
        """Demand that labels ``a`` and ``b`` (broadcast) are held together."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        differ = a != b
        if bool(differ.any()):
            pairs = torch.unique((a[differ] << 32) | b[differ])  # two labels in one number sort faster than pairs
            self.edges.append(Edge(pairs >> 32, pairs & 0xFFFFFFFF, self.op, why))

    def pin(self, fields: Iterable[Field], why: Why = "shape") -> None:
        """Demand that every worker holds these labels."""
        for one in fields:
            self.join(one.ids, torch.zeros((), dtype=torch.int64), why)
            if why == "shape":
                self.pinned.update(one.ids.flatten().tolist())

    def collapse(self, one: Field, dims: Iterable[int], why: Why = "shape") -> Field | None:
        """Join the labels along ``dims``; return the field that is left, None if it varies no more.

        Labels joined along every dim they vary along would be a single unit, so every worker holds them.
        """
        over = sorted(set(dims) & one.dims)
        if not over:
            return one
        left = replace(one, ids=one.ids.amin(over, keepdim=True))
        self.join(one.ids, left.ids, why)
        if left.dims:
            return left
        self.pin([one], why)
        return None

    def collapse_all(self, fields: Iterable[Field], dims: Iterable[int], why: Why = "shape") -> tuple[Field, ...]:
        """Collapse each of ``fields`` along ``dims``."""
        over = set(dims)
        return tuple(left for one in fields if (left := self.collapse(one, over, why)) is not None)

    def varying(self, labels: Labels) -> Labels:
        """Drop and pin fields that vary along no dim: a tensor that belongs whole to one unit is needed by all."""
        fields = [replace(one, ids=compact(one.ids)) for one in labels.fields]
        self.pin(one for one in fields if not one.dims)
        return replace(labels, fields=tuple(one for one in fields if one.dims))

    def unify(self, inputs: Sequence[tuple[Labels, frozenset[int]]]) -> tuple[Field, ...]:
        """Return the fields of an elementwise result of ``inputs``, each given as its aligned labels and its wide dims.

        A dim that is wide (not broadcast) in one input and has no field there has a fixed size, so the other inputs'
        fields must not vary along it. Fields that vary along the same dims are joined.
        """
        fields = [list(labels.fields) for labels, _ in inputs]
        wide = [dims for _, dims in inputs]
        while self._collapse_fixed(fields, wide) or self._collapse_crossing(fields, wide):
            pass
        merged: dict[frozenset[int], Field] = {}
        for one in (f for own in fields for f in own):
            if one.dims in merged:
                before = merged[one.dims]
                self.join(before.ids, one.ids)
                ids = torch.minimum(before.ids, one.ids)  # the older labels: those of weights before those of arguments
                one = Field(ids, before.origins | one.origins, before.free and one.free)
            merged[one.dims] = one
        return tuple(merged.values())

    def _collapse_fixed(self, fields: list[list[Field]], wide: list[frozenset[int]]) -> bool:
        """Collapse along dims of fixed size; return whether anything changed."""
        fixed = {d for own, dims in zip(fields, wide, strict=True) for d in dims if not any(d in f.dims for f in own)}
        if not any(f.dims & fixed for own in fields for f in own):
            return False
        fields[:] = [list(self.collapse_all(own, fixed)) for own in fields]
        return True

    def _collapse_crossing(self, fields: list[list[Field]], wide: list[frozenset[int]]) -> bool:
        """Fix one pair of fields that share some of their dims but not all; return whether there was one.

        What was broadcast along some dims of the other fits any of them. If the outermost dim of the two is common,
        both keep only the common dims. Otherwise each unit of the outermost dim has the common dims whole (a weight
        over the dims of a head serves every head), so both lose them.
        """
        flat = [(k, f) for k, own in enumerate(fields) for f in own]
        for n, (k, a) in enumerate(flat):
            for m, b in flat[n + 1 :]:
                common = a.dims & b.dims
                if common and a.dims != b.dims:
                    if a.free or b.free:
                        owner, one = (k, a) if a.free else (m, b)
                        fields[owner].remove(one)
                        wide[owner] -= one.dims
                        return True
                    outermost = min(a.dims | b.dims) in common
                    for owner, one in ((k, a), (m, b)):
                        left = self.collapse(one, one.dims - common if outermost else common)
                        kept = [] if left is None else [left]
                        self.preferred.extend(f.ids for f in kept)
                        at = fields[owner].index(one)
                        fields[owner][at : at + 1] = kept
                    return True
        return False

    def mark(self, fields: Iterable[Field], role: str) -> None:
        """Note that the parameter dims of these fields make units ("out") or sum over them ("in")."""
        for one in fields:
            self.roles.extend((origin, role, self.op) for origin in one.origins)

    def activation(self, fields: Iterable[Field]) -> tuple[Field, ...]:
        """Return the same fields for an activation, and note that their parameter dims have made units."""
        fields = tuple(fields)
        self.mark(fields, "out")
        return tuple(Field(one.ids, free=one.free) for one in fields)
