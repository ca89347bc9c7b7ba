"""Rules of matrix products: sums of products over one dim."""

from dataclasses import replace

from torch import Tensor

from skerry.discovery.index_labels import Field, Labels, map_ids
from skerry.discovery.operations.operation import Operation, RuleTable, pin_everything, wide_dims

rules = RuleTable()

_EQUATIONS = {
    "mm": "mk,kn->mn", "addmm": "mk,kn->mn", "bmm": "bmk,bkn->bmn", "baddbmm": "bmk,bkn->bmn", "mv": "mk,k->m",
    "addmv": "mk,k->m", "dot": "k,k->", "_sparse_mm": "mk,kn->mn", "_sparse_addmm": "mk,kn->mn",
}  # fmt: skip


@rules.add(*_EQUATIONS)
def matrix_product(op: Operation) -> list[Labels]:
    """A matrix product, possibly with something added."""
    adds = "add" in op.name
    a, b = op.args[1:3] if adds else op.args[:2]
    product = _sum_of_products(op, a, b, _EQUATIONS[op.name])
    if not adds:
        return [product]
    out = op.outs[0]
    return [op.combined([op.aligned(op.args[0], out.dim()), (product, wide_dims(out))])]


@rules.add("_grouped_mm")
def grouped_product(op: Operation) -> list[Labels]:
    """Rows in groups, each group times a matrix of its own: ``weight`` is (groups, k, n)."""
    x, weight = op.args[:2]
    if weight.dim() != 3 or x.dim() != 2:
        return pin_everything(op)
    table, rows = op.collapsed(op.labels_of(weight), [0]), op.collapsed(op.labels_of(x), [0])
    if not table.weight:
        return pin_everything(op)
    op.constraints.mark(rows.fields, "out")
    op.constraints.mark((one for one in table.fields if 1 in one.dims), "in")
    reads = Labels(map_ids(rows.fields, lambda ids: ids.reshape(1, -1, 1)))
    fields = op.constraints.unify([(table, wide_dims(weight) - {0}), (reads, frozenset({1}))])
    out = tuple(one for one in fields if one.dims == {2})
    return [Labels(map_ids(op.constraints.activation(out), lambda ids: ids.reshape(1, -1)))]


@rules.add("_trilinear")
def trilinear(op: Operation) -> list[Labels]:
    """``out[.., o] = sum over i, j of x[.., i] weight[o, i, j] y[.., j]``, as ``nn.Bilinear`` calls it."""
    x, weight, y = op.args[:3]
    read = op.labels_of(weight)
    if [x.dim(), weight.dim(), y.dim()] != [2, 3, 2] or not read.weight:
        return pin_everything(op)
    first, second = (op.collapsed(op.labels_of(t), [0]) for t in (x, y))
    op.constraints.mark((*first.fields, *second.fields), "out")
    op.constraints.mark((one for one in read.fields if one.dims & {1, 2}), "in")
    along = [
        (Labels(map_ids(first.fields, lambda ids: ids.reshape(1, -1, 1))), frozenset({1})),
        (Labels(map_ids(second.fields, lambda ids: ids.reshape(1, 1, -1))), frozenset({2})),
    ]
    fields = op.constraints.unify([(read, wide_dims(weight)), *along])
    out = tuple(one for one in fields if one.dims == {0})
    return [Labels(map_ids(op.constraints.activation(out), lambda ids: ids.reshape(1, -1)))]


def _sum_of_products(op: Operation, a: Tensor, b: Tensor, equation: str) -> Labels:
    """``out[o] = sum over k of a[..k..] b[..k..]``, written as an einsum ``equation`` with the summed letter k.

    The sum runs over the units along k. A narrow net gives the right sum if the terms it leaves out are zero, and they
    are where a weight reads the units. Nothing ensures that between two activations (and attention scales by the number
    of terms), so there k is not dealt out.
    """
    inputs, out = equation.split("->")
    letters = "k" + out
    spread: list[list[Field]] = []
    wide: list[frozenset[int]] = []
    weights: list[bool] = []
    for tensor, names in zip((a, b), inputs.split(","), strict=True):
        labels = op.labels_of(tensor)
        spread.append([replace(one, ids=_spread(one.ids, names, letters)) for one in labels.fields])
        dims = {letters.index(names[d]) for d in wide_dims(tensor)}
        wide.append(frozenset() if labels.uniform else frozenset(dims))
        weights.append(labels.weight)
    reads = [weight and any(0 in one.dims for one in own) for weight, own in zip(weights, spread, strict=True)]
    if not any(reads):
        spread = [list(op.constraints.collapse_all(own, [0])) for own in spread]
    # A field along k and another dim cannot be both summed over and kept: the other dim keeps it.
    spread = [
        [left for one in own if (left := op.constraints.collapse(one, [0] if len(one.dims) > 1 else ())) is not None]
        for own in spread
    ]
    reader = spread[1] if reads[1] else spread[0] if reads[0] else []  # of two weights, that of F.linear
    read = [one for one in reader if one.dims == {0}]
    fields = op.constraints.unify([(Labels(tuple(own)), dims) for own, dims in zip(spread, wide, strict=True)])
    op.constraints.mark(read, "in")
    for own in spread:
        if own is not reader:
            op.constraints.mark((one for one in own if 0 in one.dims), "out")
    result = tuple(one for one in fields if 0 not in one.dims)
    if not any(weights):  # of queries and keys, or of attention and values
        op.constraints.heads.extend(one.ids.flatten() for one in result if letters.find("b") in one.dims)
    if not all(weights):
        result = op.constraints.activation(result)
    return Labels(map_ids(result, lambda ids: ids[0]), weight=all(weights))


def _spread(ids: Tensor, names: str, letters: str) -> Tensor:
    """Arrange dims that are called ``names`` in the order of ``letters``, size 1 for those not there."""
    ids = ids.permute([names.index(letter) for letter in letters if letter in names])
    sizes = iter(ids.shape)
    return ids.reshape([next(sizes) if letter in names else 1 for letter in letters])
