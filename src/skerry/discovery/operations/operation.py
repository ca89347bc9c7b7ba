"""Operation: what a rule gets to see, and the table in which a file collects its rules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from skerry.discovery.constraints import Constraints, Why
from skerry.discovery.index_labels import Field, Labels, padded

Rule = Callable[["Operation"], Sequence[Labels]]
"""Adds an operation's constraints and returns the labels of each of its results."""


class RuleTable(dict[str, Rule]):
    """Rules by the names of the ATen operations that they are for."""

    def add(self, *names: str) -> Callable[[Rule], Rule]:
        """Return a decorator that enters a rule under ``names``."""

        def enter(rule: Rule) -> Rule:
            self.update(dict.fromkeys(names, rule))
            return rule

        return enter


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a forward, after it ran.

    Attributes:
        constraints: where a rule adds what it demands.
        labels_of: returns the labels of a tensor.
        packet: the ATen operation, without its overload.
        args: positional arguments.
        kwargs: keyword arguments.
        outs: the tensors it returned.
        fresh: returns new labels for the dim of a given size along which a tensor is broadcast; None if there shall be
            none.
        keeps_places: whether to keep varying labels where few places of a dim are picked, apart from those places.
        module: the module that ran it, if known.
        layout: shape and strides of its first tensor before it ran, None without tensor arguments.
    """

    constraints: Constraints
    labels_of: Callable[[Tensor], Labels]
    packet: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outs: Sequence[Tensor]
    fresh: Callable[[int], Tensor | None]
    keeps_places: Callable[[Tensor], bool]
    module: nn.Module | None
    layout: tuple[torch.Size, tuple[int, ...]] | None

    @property
    def in_place(self) -> bool:
        """Whether it writes to its first argument, by the convention of names that end in "_"."""
        return str(self.packet).endswith("_")

    @property
    def name(self) -> str:
        """The name without ``aten.``, and without the "_" of an operation in place."""
        return aten_name(self.packet).removesuffix("_")

    def arg(self, position: int, name: str = "", default: Any = None) -> Any:
        """Return an argument by position or, if it was passed so, by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        """Return all tensor arguments."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def aligned(self, tensor: Tensor, num_dims: int) -> tuple[Labels, frozenset[int]]:
        """Return the labels and wide dims of a tensor broadcast to ``num_dims`` dims, for ``Constraints.unify``."""
        labels = self.labels_of(tensor)
        shift = num_dims - tensor.dim()
        wide = frozenset() if labels.uniform else frozenset(d + shift for d in wide_dims(tensor))
        return replace(labels, fields=tuple(padded(one, num_dims) for one in labels.fields)), wide

    def collapsed(self, labels: Labels, dims: Iterable[int], why: Why = "shape") -> Labels:
        """Collapse every field of ``labels`` along ``dims``."""
        return replace(labels, fields=self.constraints.collapse_all(labels.fields, dims, why))

    def picked(self, labels: Labels, dim: int, places: Sequence[int]) -> Labels:
        """Return the labels of ``x.index_select(dim, places)``, of size 1 along ``dim``.

        The places of a narrow tensor are the same if all units are alike along ``dim``: queries, keys and values side
        by side. Or if every worker holds what is there, and what comes before it, or after it if it is counted from the
        end: the one key and value after the heads of the queries. The first is tried first.
        """
        fields: list[Field] = []
        for one in labels.fields:
            from_end, from_start = max(places) < 0, min(places) >= 0
            if dim in one.dims and len(one.dims) > 1 and (from_end or from_start) and self.keeps_places(one.ids):
                size = one.ids.shape[dim]
                begin, end = (size + min(places), size) if from_end else (0, max(places) + 1)
                self.constraints.pin([replace(one, ids=one.ids.narrow(dim, begin, end - begin))])
            else:
                fields.extend(self.constraints.collapse_all([one], [dim]))
        return replace(labels, fields=tuple(fields))

    def combined(self, inputs: Sequence[tuple[Labels, frozenset[int]]]) -> Labels:
        """Return the labels of an activation computed element by element from ``inputs``."""
        return Labels(self.constraints.activation(self.constraints.unify(inputs)))

    def broadcast(self, dims: Iterable[int]) -> tuple[Field, ...]:
        """Return fields with new labels along ``dims`` of the first result, along which all its values are the same."""
        shape, found = self.outs[0].shape, []
        for dim in dims:
            if (ids := self.fresh(shape[dim])) is not None:
                found.append(Field(ids.view([-1 if d == dim else 1 for d in range(len(shape))]), free=True))
        return tuple(found)

    def first_has(self, labels: Labels) -> list[Labels]:
        """Return ``labels`` for the first result, and no labels for the others (indices, statistics)."""
        return [labels, *(Labels() for _ in self.outs[1:])]


def aten_name(packet: Any) -> str:
    """Return the name of an ATen operation without ``aten.``."""
    return str(packet).removeprefix("aten.")


def wide_dims(tensor: Tensor) -> frozenset[int]:
    """Return the dims with more than one index in memory; expanded dims, and those of no elements, are none."""
    dense = tensor.layout == torch.strided
    if dense and not tensor.numel():
        return frozenset()
    return frozenset(d for d, n in enumerate(tensor.shape) if n > 1 and not (dense and tensor.stride(d) == 0))


def pin_everything(op: Operation) -> list[Labels]:
    """For an operation without a rule: nothing that passes through it is dealt out."""
    for tensor in op.tensors():
        op.constraints.pin(op.labels_of(tensor).fields)
    return [Labels() for _ in op.outs]
