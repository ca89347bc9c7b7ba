"""Rules of operations that cut a dim into parts, take one index of it, or put tensors together."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from skerry.discovery.index_labels import Field, Labels, Origin, map_ids, reshaped
from skerry.discovery.operations.operation import Operation, RuleTable, wide_dims

rules = RuleTable()


@rules.add("slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def slices(op: Operation) -> list[Labels]:
    """Parts of a dim. Once the units are known, each part must have the same share of every unit."""
    x = op.args[0]
    old = op.labels_of(x)
    is_slice = op.name == "slice"
    dim = int(op.arg(1 if is_slice else 2, "dim", 0)) % x.dim()
    size = x.shape[dim]
    begin, step = (slice(op.arg(2, "start"), None).indices(size)[0], op.arg(4, "step", 1)) if is_slice else (0, 1)
    if op.outs and op.outs[0].shape[dim] == size:
        return [old for _ in op.outs]
    ends = [begin]
    for out in op.outs:
        ends.append(ends[-1] + out.shape[dim])
    if step != 1 and size % step == 0 and begin < step and op.outs[0].shape[dim] == size // step:
        blocks = torch.Size([*x.shape[:dim], size // step, step, *x.shape[dim + 1 :]])
        fields = map_ids(old.fields, lambda ids: reshaped(ids, x.shape, blocks))  # a unit has all places of a block
        fields = op.constraints.collapse_all(fields, [dim + 1])
        return [replace(old, fields=map_ids(fields, lambda ids: ids.squeeze(dim + 1)))]
    if step != 1:
        old = op.collapsed(old, [dim])
    else:
        _cut_evenly(op, old, dim, ends)
    return [
        replace(old, fields=_part(old.fields, dim, at, out.shape[dim]))
        for at, out in zip(ends, op.outs, strict=False)
    ]  # fmt: skip


@rules.add("glu")
def glu(op: Operation) -> list[Labels]:
    """The first half of a dim times the sigmoid of the second."""
    x, out = op.args[0], op.outs[0]
    dim = int(op.arg(1, "dim", -1)) % x.dim()
    half = out.shape[dim]
    old = op.labels_of(x)
    _cut_evenly(op, old, dim, [half])
    halves = [Labels(_part(old.fields, dim, begin, half)) for begin in (0, half)]
    return [op.combined([(op.constraints.varying(part), wide_dims(out)) for part in halves])]


@rules.add("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def fused_cell(op: Operation) -> list[Labels]:
    """A step of a recurrent layer on a GPU: a part as wide as the state of each input, and of its bias, is a gate's."""
    width, num_states = op.args[2].shape[1], 2 if "lstm" in op.name else 1
    inputs = [op.aligned(op.args[2], 2)]
    for tensor in (*op.args[:2], *op.args[3:5]):
        if isinstance(tensor, Tensor):
            labels, wide = op.aligned(tensor, 2)
            gates = range(0, tensor.shape[-1], width)
            _cut_evenly(op, labels, 1, gates)
            parts = [Labels(_part(labels.fields, 1, begin, width)) for begin in gates]
            inputs.extend((op.constraints.varying(part), wide) for part in parts)
    result = op.combined(inputs)
    return [result if k < num_states else Labels() for k in range(len(op.outs))]


def _cut_evenly(op: Operation, labels: Labels, dim: int, ends: Sequence[int]) -> None:
    along = labels.along(dim)
    if along is not None:
        op.constraints.even_cuts.append((along.ids, dim, tuple(ends), op.constraints.op))


def _part(fields: Sequence[Field], dim: int, begin: int, length: int) -> tuple[Field, ...]:
    return map_ids(fields, lambda ids: ids.narrow(dim, begin, length) if ids.shape[dim] > 1 else ids)


@rules.add("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Operation) -> list[Labels]:
    """The first channel of each group, then the second of each. Groups must have the same share of every unit."""
    x, groups = op.args[:2]
    old, size = op.labels_of(x), x.shape[1]
    _cut_evenly(op, old, 1, range(0, size + 1, size // groups))
    order = torch.arange(size).view(groups, -1).t().flatten()
    return [replace(old, fields=map_ids(old.fields, lambda ids: ids[:, order] if ids.shape[1] > 1 else ids))]


@rules.add("select", "unbind")
def one_index(op: Operation) -> list[Labels]:
    """One index of a dim is the same in a narrow net only if all indices are held together."""
    x = op.args[0]
    dim = int(op.arg(1, "dim", 0)) % x.dim()
    left = op.collapsed(op.labels_of(x), [dim])
    return [replace(left, fields=map_ids(left.fields, lambda ids: ids.squeeze(dim))) for _ in op.outs]


@rules.add("cat", "concatenate")
def concatenate(op: Operation) -> list[Labels]:
    """Tensors one after the other, so their labels too. Along the other dims the labels must agree."""
    out = op.outs[0]
    parts = [t for t in op.args[0] if t.numel()]
    dim = int(op.arg(1, "dim", 0)) % out.dim()
    labels = [op.labels_of(t) for t in parts]
    # The dims along which the joined field varies: ``dim``, and those that share a field with one of them.
    spread = {d for found in labels if (one := found.along(dim)) is not None for d in one.dims}
    while grown := {d for found in labels for one in found.fields if one.dims & spread for d in one.dims} - spread:
        spread |= grown
    rows, origins, rest = [], frozenset[Origin](), []
    for tensor, found in zip(parts, labels, strict=True):
        shape = [n if d in spread or d == dim else 1 for d, n in enumerate(tensor.shape)]
        inside = [one for one in found.fields if one.dims & spread]
        if len(inside) > 1:
            op.constraints.pin(inside)
        rows.append(inside[0].ids.expand(shape) if len(inside) == 1 else torch.zeros(shape, dtype=torch.int64))
        origins |= {o for one in inside for o in one.origins}
        wide = frozenset() if found.uniform else wide_dims(tensor) - spread - {dim}
        rest.append((replace(found, fields=tuple(one for one in found.fields if one not in inside)), wide))
    fields = op.constraints.unify(rest)
    if spread:
        fields = (*fields, Field(torch.cat(rows, dim), origins))
        if len(spread) > 1:
            op.constraints.outermost.append((fields[-1].ids, op.constraints.op))
    return [Labels(fields, weight=all(found.weight for found in labels))]


@rules.add("stack")
def stack(op: Operation) -> list[Labels]:
    """Tensors side by side along a new dim must agree element by element."""
    dim = int(op.arg(1, "dim", 0)) % op.outs[0].dim()
    pairs = [op.aligned(t, t.dim()) for t in op.args[0]]
    weight = all(labels.weight for labels, _ in pairs)
    return [Labels(map_ids(op.constraints.unify(pairs), lambda ids: ids.unsqueeze(dim)), weight=weight)]
