"""Rules of operations that pick places by number: the same places in a narrow net only if the dim is not dealt out."""

from dataclasses import replace

import torch

from skerry.discovery.index_labels import Labels, map_ids, padded
from skerry.discovery.operations.operation import Operation, RuleTable

rules = RuleTable()


def _pin_indices(op: Operation) -> None:
    """Pin what an index depends on: an index computed from units would pick other places in a narrow net."""
    for index in op.tensors():
        if index is not op.args[0] and not index.is_floating_point():
            op.constraints.pin(one for one in op.labels_of(index).fields if not one.free)


@rules.add("embedding")
def embedding(op: Operation) -> list[Labels]:
    """Rows of a table."""
    _pin_indices(op)
    fields = op.constraints.collapse_all(op.labels_of(op.args[0]).fields, [0])
    rows = tuple(padded(replace(one, ids=one.ids[0]), op.outs[0].dim()) for one in fields)
    return [Labels(op.constraints.activation(rows))]


@rules.add("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(op: Operation) -> list[Labels]:
    """Sums, means or maxima over rows of a table."""
    _pin_indices(op)
    fields = op.constraints.collapse_all(op.labels_of(op.args[0]).fields, [0])
    return op.first_has(Labels(op.constraints.activation(fields)))


@rules.add("index_select")
def index_select(op: Operation) -> list[Labels]:
    """Any indices of one dim."""
    _pin_indices(op)
    x = op.args[0]
    return [op.collapsed(op.labels_of(x), [int(op.arg(1, "dim", 0)) % max(1, x.dim())])]


@rules.add("_pack_padded_sequence")
def pack(op: Operation) -> list[Labels]:
    """The sequences of a batch without their padding: (time, batch, ...) becomes (steps, ...)."""
    left = op.collapsed(op.labels_of(op.args[0]), [0, 1])
    return op.first_has(replace(left, fields=map_ids(left.fields, lambda ids: ids.squeeze(0))))


@rules.add("gather", "take_along_dim", "index_add", "scatter_add", "scatter", "scatter_reduce", "index_copy",
           "index_reduce")  # fmt: skip
def gather_or_scatter(op: Operation) -> list[Labels]:
    """Places along one dim, read or written; along the other dims all tensors must agree."""
    _pin_indices(op)
    num_dims = op.outs[0].dim()
    dim = int(op.arg(1, "dim", 0)) % max(1, op.args[0].dim())
    pairs = [op.aligned(t, num_dims) for t in op.tensors() if t.dim() == num_dims]
    return [op.combined([(op.collapsed(found, [dim]), wide - {dim}) for found, wide in pairs])]


@rules.add("index", "index_put")
def index(op: Operation) -> list[Labels]:
    """``x[i, :, j]``, read or written."""
    _pin_indices(op)
    x, indices, out = op.args[0], op.args[1], op.outs[0]
    at: list[int] = []  # the indexed dims
    d = 0
    for each in indices:
        taken = 1 if each is None or each.dtype not in (torch.bool, torch.uint8) else each.dim()
        if each is not None:
            at.extend(range(d, d + taken))
        d += taken
    left = op.collapsed(op.labels_of(x), at)
    if op.name == "index_put":
        values = op.args[2]
        if values.dim() == 0 and op.labels_of(values).uniform:
            return [replace(left, uniform=False)]
        op.constraints.pin(op.labels_of(values).fields)
    elif at == list(range(at[0], at[-1] + 1)):
        new = out.dim() - (x.dim() - len(at))  # dims of the index, which come where the first indexed dim was
        shape = (1,) * new
        moved = map_ids(left.fields, lambda ids: ids.reshape(*ids.shape[: at[0]], *shape, *ids.shape[at[-1] + 1 :]))
        return [replace(left, fields=moved)]
    op.constraints.pin(left.fields)
    return [Labels()]
