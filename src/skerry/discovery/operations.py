"""Operations: one small rule for each kind, saying what it means for labels.

A rule is right if the operation, done on narrow tensors, gives the narrow result: whatever an element of the result was
computed from is held wherever the element is, or (in a sum over weights) is zero where it is not. An operation without
a rule pins all labels it touches, so that nothing that goes through it is dealt out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skerry.discovery.labels import Field, Labels, Origin, compact, padded, reshaped
from skerry.discovery.trace import Operation, Rule, pin_everything, wide_dims

aten = torch.ops.aten
_rules: dict[Any, Rule] = {}


def rule_of(func: Any) -> Rule | None:
    """The rule for an ATen operation (an overload), None if there is none."""
    packet = func.overloadpacket
    if packet in _rules:
        return _rules[packet]
    name = str(packet).removeprefix("aten.")
    if name.endswith("_") and hasattr(aten, name[:-1]) and getattr(aten, name[:-1]) in _rules:
        return _rules[getattr(aten, name[:-1])]  # in place: the same, and the trace joins what was there before
    return _pointwise if torch.Tag.pointwise in func.tags else None


def _for(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        for name in names:
            if hasattr(aten, name):  # versions of torch differ in which they have
                _rules[getattr(aten, name)] = rule
        return rule

    return add


def _each(fields: Iterable[Field], move: Callable[[Tensor], Tensor]) -> tuple[Field, ...]:
    return tuple(replace(one, ids=move(one.ids)) for one in fields)


def _as_outputs(op: Operation, labels: Labels) -> list[Labels]:
    """The first result has ``labels``; the others (indices, statistics) nothing that anybody may rely on."""
    return [labels, *(Labels() for _ in op.outs[1:])]


# --- making tensors -------------------------------------------------------------------------------------------------


@_for(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
    "full_like", "empty_like", "bernoulli", "scalar_tensor", "empty_strided", "new_empty_strided", "fill", "zero",
    "empty_permuted",
)  # fmt: skip
def _make_uniform(op: Operation) -> list[Labels]:
    """One value everywhere: it fits any width, since code that spells the width out fails in a narrow net.

    So does the noise of dropout, which each element gets by itself.
    """
    if op.args and isinstance(op.args[0], Tensor) and str(op.packet).endswith("_"):
        return [op.labels_of(op.args[0])]  # filled in place: what it belongs to stays
    return [Labels(uniform=True) for _ in op.outs]


@_for("arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "tril_indices")
def _make_other(op: Operation) -> list[Labels]:
    """Values that depend on position or chance: a narrow tensor would have others, so the size is fixed."""
    return [Labels() for _ in op.outs]


# --- moving elements ------------------------------------------------------------------------------------------------


@_for(
    "clone",
    "detach",
    "alias",
    "lift_fresh",
    "contiguous",
    "_to_copy",
    "dropout",
    "native_dropout",
    "_conj",
    "view_as_real",
)
def _same(op: Operation) -> list[Labels]:
    """The same elements in the same places."""
    return _as_outputs(op, op.labels_of(op.args[0]))


@_for("as_strided", "as_strided_")
def _restride(op: Operation) -> list[Labels]:
    """Only where it changes the strides of dims with one index (pooling channels-last images): nothing moves."""
    assert op.layout is not None
    (shape, strides), size, wanted = op.layout, tuple(op.args[1]), tuple(op.args[2])
    moved = any(n > 1 and a != b for n, a, b in zip(size, strides, wanted, strict=False))
    if size != tuple(shape) or moved or op.arg(3, "storage_offset") is not None:
        return pin_everything(op)
    return [op.labels_of(op.args[0])]


@_for("t", "transpose", "permute", "unsqueeze", "movedim")
def _reorder(op: Operation) -> list[Labels]:
    """Dims change places; a field has the same number of dims, so the same is done to it."""
    old = op.labels_of(op.args[0])
    return [replace(old, fields=_each(old.fields, lambda ids: op.packet(ids, *op.args[1:])))]


@_for("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "flatten", "unflatten")
def _regroup(op: Operation) -> list[Labels]:
    """Dims are split and merged. Where labels then vary along several dims, the outermost must carry the units."""
    x, out = op.args[0], op.outs[0]
    old = op.labels_of(x)
    if x.numel() == 0 or isinstance(op.arg(1), torch.dtype):
        return pin_everything(op)
    fields = _each(old.fields, lambda ids: reshaped(ids, x.shape, out.shape))
    op.bonds.outermost.extend((one.ids, op.bonds.now) for one in fields if len(one.dims) > 1)
    return [replace(old, fields=_separate(op, fields))]


def _separate(op: Operation, fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Fields that a merge of dims has put along one dim: keep the first, which had the outer dim."""
    kept: list[Field] = []
    for one in sorted(fields, key=lambda f: (min(f.dims), _period(f))):
        taken = frozenset(d for f in kept for d in f.dims) & one.dims
        left = op.bonds.collapse(one, taken) if taken else one
        op.bonds.preferred.extend(f.ids for f in kept if f.dims & taken)
        if left is not None:
            kept.append(left)
    return tuple(kept)


def _period(one: Field) -> int:
    """How often neighbours differ along the outermost dim: less often for what came from an outer dim."""
    d = min(one.dims)
    ids = one.ids.movedim(d, 0).reshape(one.ids.shape[d], -1)[:, 0]
    return int((ids[1:] != ids[:-1]).sum())


@_for("expand")
def _expand(op: Operation) -> list[Labels]:
    """Broadcasting: the new dims have no labels."""
    old = op.labels_of(op.args[0])
    return [replace(old, fields=tuple(padded(one, op.outs[0].dim()) for one in old.fields))]


@_for("slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def _slices(op: Operation) -> list[Labels]:
    """Parts of a dim. Once the units are known, each part must have the same share of every unit (``units.py``)."""
    x = op.args[0]
    old = op.labels_of(x)
    is_slice = op.packet is aten.slice
    dim = int(op.arg(1 if is_slice else 2, "dim", 0)) % x.dim()
    size = x.shape[dim]
    if is_slice:
        begin = op.arg(2, "start") or 0
        begin = max(0, min(size, begin + size if begin < 0 else begin))
        step = op.arg(4, "step", 1)
    else:
        begin, step = 0, 1
    if op.outs and op.outs[0].shape[dim] == size:
        return [old for _ in op.outs]
    along = old.along(dim)
    fields = old.fields
    if step != 1:
        fields = op.bonds.collapse_all(fields, [dim])
    elif along is not None:
        ends = [begin]
        for out in op.outs:
            ends.append(ends[-1] + out.shape[dim])
        op.bonds.prefixes.append((along.ids, dim, tuple(ends), op.bonds.now))
    results = []
    for out in op.outs:
        length, at = out.shape[dim], begin

        def part(ids: Tensor, at: int = at, length: int = length) -> Tensor:
            return compact(ids.narrow(dim, at, length)) if ids.shape[dim] > 1 else ids

        begin += length
        results.append(replace(old, fields=_each(fields, part)))
    return results


@_for("glu")
def _glu(op: Operation) -> list[Labels]:
    """The first half of a dim times the sigmoid of the second."""
    x, out = op.args[0], op.outs[0]
    dim, half = int(op.arg(1, "dim", -1)) % x.dim(), out.shape[int(op.arg(1, "dim", -1))]
    old = op.labels_of(x)
    along = old.along(dim)
    if along is not None:
        op.bonds.prefixes.append((along.ids, dim, (half,), op.bonds.now))

    def part(ids: Tensor, begin: int) -> Tensor:
        return ids.narrow(dim, begin, half) if ids.shape[dim] > 1 else ids

    halves = [Labels(tuple(replace(f, ids=part(f.ids, begin)) for f in old.fields)) for begin in (0, half)]
    return [Labels(op.bonds.used(op.bonds.unify([(op.bonds.varying(part), wide_dims(out)) for part in halves])))]


@_for("select", "unbind")
def _pick(op: Operation) -> list[Labels]:
    """One index of a dim: the same one in a narrow net only if all indices are held together."""
    x = op.args[0]
    dim = int(op.arg(1, "dim", 0)) % x.dim()
    old = op.labels_of(x)
    fields = op.bonds.collapse_all(old.fields, [dim])
    return [replace(old, fields=_each(fields, lambda ids: ids.squeeze(dim))) for _ in op.outs]


@_for("cat", "concatenate")
def _cat(op: Operation) -> list[Labels]:
    """Tensors one after the other: labels too. Along the other dims they must agree."""
    out = op.outs[0]
    parts = [t for t in op.args[0] if not (t.dim() == 1 and t.numel() == 0)]
    dim = int(op.arg(1, "dim", 0)) % out.dim()
    labels = [op.labels_of(t) for t in parts]
    spelled = {d for found in labels if (one := found.along(dim)) is not None for d in one.dims}
    while grown := {d for found in labels for one in found.fields if one.dims & spelled for d in one.dims} - spelled:
        spelled |= grown
    rows, origins, rest = [], frozenset[Origin](), []
    for tensor, found in zip(parts, labels, strict=True):
        shape = [n if d in spelled or d == dim else 1 for d, n in enumerate(tensor.shape)]
        inside = [one for one in found.fields if one.dims & spelled]
        if len(inside) > 1:
            op.bonds.pin(inside)
        row = inside[0].ids.expand(shape) if len(inside) == 1 else torch.zeros(shape, dtype=torch.int64)
        rows.append(row)
        origins |= {o for one in inside for o in one.origins}
        wide = frozenset() if found.uniform else wide_dims(tensor) - spelled - {dim}
        rest.append((replace(found, fields=tuple(one for one in found.fields if one not in inside)), wide))
    fields = op.bonds.unify(rest)
    if spelled:
        fields = (*fields, Field(torch.cat(rows, dim), origins))
        if len(spelled) > 1:
            op.bonds.outermost.append((fields[-1].ids, op.bonds.now))
    return [Labels(fields, weight=all(found.weight for found in labels))]


@_for("stack")
def _stack(op: Operation) -> list[Labels]:
    """Tensors side by side along a new dim: they must agree, element by element."""
    dim = int(op.arg(1, "dim", 0)) % op.outs[0].dim()
    pairs = [_aligned(op, t, t.dim()) for t in op.args[0]]
    weight = all(op.labels_of(t).weight for t in op.args[0])
    return [Labels(_each(op.bonds.unify(pairs), lambda ids: ids.unsqueeze(dim)), weight=weight)]


@_for("repeat")
def _repeat(op: Operation) -> list[Labels]:
    """The whole tensor again along a dim: its labels again."""
    old, times = op.labels_of(op.args[0]), list(op.args[1])

    def again(ids: Tensor) -> Tensor:
        ids = ids.view((1,) * (len(times) - ids.dim()) + ids.shape)
        return ids.repeat([k if n > 1 else 1 for k, n in zip(times, ids.shape, strict=True)])

    return [replace(old, fields=_each(old.fields, again))]


@_for("flip", "roll", "tril", "triu", "diagonal", "constant_pad_nd", "topk", "sort", "argsort", "cumsum", "cumprod",
      "logcumsumexp", "_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")  # fmt: skip
def _mixes_along(op: Operation) -> list[Labels]:
    """Same number of dims, but what is where (or how large) along some dims depends on all that is there."""
    x = op.args[0]
    old = op.labels_of(x)
    name = str(op.packet).removeprefix("aten.")
    dims: Iterable[int]
    if name in ("tril", "triu", "diagonal"):
        dims = (-2, -1)
    elif name == "constant_pad_nd":
        dims = [-1 - k for k in range(len(op.args[1]) // 2) if op.args[1][2 * k] or op.args[1][2 * k + 1]]
    elif name in ("flip", "roll"):
        dims = op.arg(2 if name == "roll" else 1, "dims", ()) or range(x.dim())
        dims = [dims] if isinstance(dims, int) else dims
    else:
        dims = [int(op.arg({"topk": 2, "sort": 1, "argsort": 1}.get(name, 1), "dim", -1))]
    fields = op.bonds.collapse_all(old.fields, [d % x.dim() for d in dims], "statistic")
    if "softmax" in name:
        op.bonds.heads.extend(one.ids.flatten() for one in fields)
    if name == "diagonal":
        return pin_everything(op)
    return [Labels(op.bonds.used(fields)) for _ in op.outs]


@_for("index_select", "gather", "index", "take_along_dim", "index_put", "index_add", "scatter_add", "scatter",
      "scatter_reduce", "embedding", "index_copy", "index_reduce")  # fmt: skip
def _by_index(op: Operation) -> list[Labels]:
    """Places along a dim are given by number: the same ones in a narrow net only if that dim is not dealt out."""
    name = str(op.packet).removeprefix("aten.").rstrip("_")
    x, out = op.args[0], op.outs[0]
    for index in op.tensors():  # an index that depends on units: whatever it picks would, too
        if index is not x and not index.is_floating_point():
            op.bonds.pin(op.labels_of(index).fields)
    if name == "embedding":
        return [Labels(op.bonds.used(_last_dim(op, op.labels_of(x), out.dim())))]
    if name in ("index", "index_put"):
        return _index(op, name)
    dim = int(op.arg(1, "dim", 0)) % max(1, x.dim())
    if name == "index_select":
        old = op.labels_of(x)
        return [replace(old, fields=op.bonds.collapse_all(old.fields, [dim]))]
    pairs = [_aligned(op, t, out.dim()) for t in op.tensors() if t.dim() == out.dim()]
    pairs = [(replace(found, fields=op.bonds.collapse_all(found.fields, [dim])), wide - {dim}) for found, wide in pairs]
    return [Labels(op.bonds.used(op.bonds.unify(pairs)))]


def _last_dim(op: Operation, table: Labels, num_dims: int) -> tuple[Field, ...]:
    """The fields of looked-up rows of a table."""
    fields = op.bonds.collapse_all(table.fields, [0])
    return tuple(padded(replace(one, ids=one.ids[0]), num_dims) for one in fields)


def _index(op: Operation, name: str) -> list[Labels]:
    x, indices, out = op.args[0], op.args[1], op.outs[0]
    old = op.labels_of(x)
    at: list[int] = []
    d = 0
    for index in indices:
        taken = 1 if index is None or index.dtype not in (torch.bool, torch.uint8) else index.dim()
        if index is not None:
            at.extend(range(d, d + taken))
            op.bonds.pin(op.labels_of(index).fields)
        d += taken
    fields = op.bonds.collapse_all(old.fields, at)
    if name == "index_put":
        values = op.args[2]
        if values.dim() == 0 and op.labels_of(values).uniform:
            return [replace(old, fields=fields, uniform=False)]
        op.bonds.pin(op.labels_of(values).fields)
        op.bonds.pin(fields)
        return [Labels()]
    if at != list(range(at[0], at[-1] + 1)):
        op.bonds.pin(fields)
        return [Labels()]
    new = out.dim() - (x.dim() - len(at))  # dims of the index, which come where the first indexed dim was
    moved = _each(fields, lambda ids: ids.reshape(*ids.shape[: at[0]], *(1,) * new, *ids.shape[at[-1] + 1 :]))
    return [replace(old, fields=moved)]


# --- element by element ---------------------------------------------------------------------------------------------

_ZERO_PRESERVING = [aten.mul, aten.div, aten.neg]
_ZERO_PRESERVING_SUMS = [aten.add, aten.sub]


def _aligned(op: Operation, tensor: Tensor, num_dims: int) -> tuple[Labels, frozenset[int]]:
    """Labels and wide dims of a tensor broadcast to ``num_dims`` dims; nothing of it is a weight's any more."""
    labels = op.labels_of(tensor)
    shift = num_dims - tensor.dim()
    wide = frozenset() if labels.uniform else frozenset(d + shift for d in wide_dims(tensor))
    return replace(labels, fields=tuple(padded(one, num_dims) for one in labels.fields)), wide


@_for("where", "masked_fill", "copy", "clamp", "lerp", "addcmul", "addcdiv", "gelu", "silu", "mish", "hardswish",
      "hardsigmoid", "hardtanh", "leaky_relu", "elu", "prelu", "_prelu_kernel", "rrelu_with_noise", "softplus",
      "log_sigmoid_forward", "threshold", "celu", "selu", "relu6", "bitwise_and", "isin", "nan_to_num")  # fmt: skip
def _pointwise(op: Operation) -> list[Labels]:
    """Element by element: each element of the result needs those it was made from."""
    num_dims = op.outs[0].dim()
    tensors = op.tensors()
    if not num_dims:
        return [Labels(uniform=True) for _ in op.outs]
    found = [op.labels_of(t) for t in tensors]
    fields = op.bonds.unify([_aligned(op, t, num_dims) for t in tensors])
    if all(labels.uniform for labels in found):
        return [Labels(uniform=True) for _ in op.outs]
    packet = op.packet if not str(op.packet).endswith("_") else getattr(aten, str(op.packet)[5:-1], None)
    first, others = found[0], found[1:]
    scaled = packet in _ZERO_PRESERVING and first.weight and all(labels.weight or labels.uniform for labels in others)
    # A sum is zero where a weight is only if all of its terms are: each must have labels along the same dims.
    along = [{one.dims for one in _aligned(op, t, num_dims)[0].fields} for t in tensors]
    added = packet in _ZERO_PRESERVING_SUMS and len(found) == 2 and all(labels.weight for labels in found)
    if scaled or (added and along[0] == along[1] == {one.dims for one in fields}):
        if scaled:  # w * m: only w's place in a sum is scaled
            origins = {one.dims: one.origins for one in _aligned(op, tensors[0], num_dims)[0].fields}
            fields = tuple(replace(one, origins=origins.get(one.dims, one.origins)) for one in fields)
        return [Labels(fields, weight=True) for _ in op.outs]
    used = op.bonds.used(fields)
    if packet is aten.exp:
        op.bonds.heads.extend(one.ids.flatten() for one in used)  # a softmax spelled out
    return [Labels(used) for _ in op.outs]


# --- along dims -----------------------------------------------------------------------------------------------------


@_for("sum", "mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "logsumexp", "norm",
      "linalg_vector_norm", "prod", "argmax", "argmin", "any", "all", "nansum", "median", "aminmax",
      "count_nonzero")  # fmt: skip
def _reduce(op: Operation) -> list[Labels]:
    """A statistic over dims: all that goes into it must be held."""
    x = op.args[0]
    name = str(op.packet)
    given = op.arg(2 if "norm" in name else 1, "dim")
    if isinstance(given, Tensor):  # max(a, b) of two tensors
        return list(_pointwise(op))
    if isinstance(given, bool) or given is None or given == []:
        given = range(x.dim())
    dims = {d % max(1, x.dim()) for d in ([given] if isinstance(given, int) else given)}
    fields = op.bonds.used(op.bonds.collapse_all(op.labels_of(x).fields, dims, "statistic"))
    results = []
    for out in op.outs:
        if out.dim() == x.dim():
            results.append(Labels(fields, uniform=op.labels_of(x).uniform))
        else:
            kept = [d for d in range(x.dim()) if d not in dims]
            moved = tuple(replace(f, ids=f.ids.reshape([f.ids.shape[d] for d in kept])) for f in fields)
            results.append(Labels(moved, uniform=not kept or op.labels_of(x).uniform))
    return results


@_for("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def _layer_norm(op: Operation) -> list[Labels]:
    """Statistics over the last dims, then an affine map along them."""
    x, out = op.args[0], op.outs[0]
    over = range(x.dim() - len(op.args[1]), x.dim())
    labels, wide = _aligned(op, x, x.dim())
    pairs = [(replace(labels, fields=op.bonds.collapse_all(labels.fields, over)), wide)]
    pairs += [_aligned(op, t, out.dim()) for t in op.args[2:4] if isinstance(t, Tensor)]
    return _as_outputs(op, Labels(op.bonds.used(op.bonds.unify(pairs))))


@_for("native_group_norm")
def _group_norm(op: Operation) -> list[Labels]:
    """Statistics over the channels of a group: a group is a unit."""
    x, num_groups = op.args[0], int(op.args[6])
    channels = x.shape[1]
    if not isinstance(op.module, nn.GroupNorm):
        num_groups = 1  # a number of groups that is spelled out somewhere would stay what it is in a narrow net
    per_group = channels // num_groups
    grouped = torch.Size([num_groups, per_group])

    def by_group(one: Field, dim: int) -> Field | None:
        ids = reshaped(one.ids.transpose(0, dim).flatten(), torch.Size([channels]), grouped)
        return op.bonds.collapse(replace(one, ids=ids), [1])

    pairs = []
    for tensor, dim in ((x, 1), (op.args[1], 0), (op.args[2], 0)):
        if isinstance(tensor, Tensor):
            others = [d for d in range(tensor.dim()) if d != dim]
            fields = op.bonds.collapse_all(op.labels_of(tensor).fields, others)
            found = tuple(g for one in fields if (g := by_group(one, dim)) is not None)
            pairs.append((Labels(found), frozenset({0})))
    groups = op.bonds.used(op.bonds.unify(pairs))
    shape = [channels if d == 1 else 1 for d in range(x.dim())]
    moved = _each(groups, lambda ids: ids.expand(num_groups, per_group).reshape(shape))
    return _as_outputs(op, Labels(moved))


@_for("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_with_update", "_batch_norm_no_update")  # fmt: skip
def _batch_norm(op: Operation) -> list[Labels]:
    """Statistics and an affine map for each channel by itself."""
    x = op.args[0]
    labels, wide = _aligned(op, x, x.dim())
    labels = replace(labels, fields=op.bonds.collapse_all(labels.fields, [d for d in range(x.dim()) if d != 1]))
    pairs = [(labels, wide)]
    for tensor in op.args[1:5]:
        if isinstance(tensor, Tensor):
            along = _each(op.labels_of(tensor).fields, lambda ids: ids.view([1, -1] + [1] * (x.dim() - 2)))
            pairs.append((Labels(along), wide & {1}))
    return _as_outputs(op, Labels(op.bonds.used(op.bonds.unify(pairs))))


@_for("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d",
      "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d",
      "mkldnn_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
      "upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d",
      "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "_upsample_nearest_exact2d",
      "_upsample_bilinear2d_aa", "adaptive_avg_pool1d", "adaptive_max_pool1d")  # fmt: skip
def _local(op: Operation) -> list[Labels]:
    """Neighbours in space, channel by channel."""
    x = op.args[0]
    num_spatial = next(int(c) for c in str(op.packet).removeprefix("aten.") if c.isdigit())
    fields = op.bonds.collapse_all(op.labels_of(x).fields, range(x.dim() - num_spatial, x.dim()))
    return [Labels(op.bonds.used(fields)) for _ in op.outs]


# --- sums of products -----------------------------------------------------------------------------------------------


def _sum_of_products(op: Operation, a: Tensor, b: Tensor, equation: str) -> Labels:
    """``out[o] = sum over k of a[..k..] b[..k..]``, written as an einsum ``equation`` with the summed letter k.

    The units along k are summed up, which a narrow net can do if what it leaves out is zero: the weight that reads them
    is. Between two activations nothing vouches for that (and attention scales by the number of terms), so there k is
    not dealt out.
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
        spread = [list(op.bonds.collapse_all(own, [0])) for own in spread]
    # A field along k and something else cannot both be summed over and stay: the other dim keeps it.
    spread = [
        [left for one in own if (left := op.bonds.collapse(one, [0] if len(one.dims) > 1 else ())) is not None]
        for own in spread
    ]
    reader = spread[reads.index(True)] if any(reads) else []
    read = [one for one in reader if one.dims == {0}]
    fields = op.bonds.unify([(Labels(tuple(own)), dims) for own, dims in zip(spread, wide, strict=True)])
    op.bonds.mark(read, "in")
    for own in spread:
        if own is not reader:
            op.bonds.mark((one for one in own if 0 in one.dims), "out")
    result = tuple(one for one in fields if 0 not in one.dims)
    if not all(weights):
        result = op.bonds.used(result)
    return Labels(_each(result, lambda ids: ids[0]), weight=all(weights))


def _spread(ids: Tensor, names: str, letters: str) -> Tensor:
    """Arrange dims that are called ``names`` in the order of ``letters``, size 1 for those not there."""
    order = [names.index(letter) for letter in letters if letter in names]
    ids = ids.permute(order)
    sizes = iter(ids.shape)
    return ids.reshape([next(sizes) if letter in names else 1 for letter in letters])


_EQUATIONS = {
    "mm": "mk,kn->mn", "addmm": "mk,kn->mn", "bmm": "bmk,bkn->bmn", "baddbmm": "bmk,bkn->bmn", "mv": "mk,k->m",
    "addmv": "mk,k->m", "dot": "k,k->", "_sparse_mm": "mk,kn->mn", "_sparse_addmm": "mk,kn->mn",
}  # fmt: skip


@_for(*_EQUATIONS)
def _matrix_product(op: Operation) -> list[Labels]:
    """A matrix product, with something added or not."""
    name = str(op.packet).removeprefix("aten.").rstrip("_")
    adds = "add" in name
    a, b = op.args[1 if adds else 0], op.args[2 if adds else 1]
    product = _sum_of_products(op, a, b, _EQUATIONS[name])
    if not adds:
        return [product]
    out = op.outs[0]
    wide = frozenset(d for d, n in enumerate(out.shape) if n > 1)
    fields = op.bonds.unify([_aligned(op, op.args[0], out.dim()), (product, wide)])
    return [Labels(op.bonds.used(fields))]


@_for("convolution", "_convolution", "mkldnn_convolution")
def _convolution(op: Operation) -> list[Labels]:
    """A sum of products over the input channels, at each place; or within each group of channels."""
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    transposed, groups = (bool(op.args[6]), int(op.args[8])) if len(op.args) > 8 else (False, int(op.args[-1]))
    out = op.outs[0]
    space = range(2, x.dim())
    image, kernel = op.labels_of(x), op.labels_of(weight)
    image_fields = op.bonds.collapse_all(image.fields, [0, *space])
    kernel_fields = op.bonds.collapse_all(kernel.fields, space)
    into = 0 if transposed else 1
    if groups == 1:
        products = _product_of_channels(op, image_fields, kernel_fields, kernel.weight, x.shape[1], out.shape[1], into)
    else:
        products = _product_of_groups(op, image_fields, kernel_fields, groups, x, weight, out, transposed)
    shape = [1, -1] + [1] * (out.dim() - 2)
    found = Labels(_each(products, lambda ids: ids.reshape(shape)))
    pairs = [(found, frozenset({1}) if out.shape[1] > 1 else frozenset())]
    if isinstance(bias, Tensor):
        along = _each(op.labels_of(bias).fields, lambda ids: ids.view(shape))
        pairs.append((Labels(along), frozenset({1}) if bias.numel() > 1 else frozenset()))
    return [Labels(op.bonds.used(op.bonds.unify(pairs)))]


def _product_of_channels(
    op: Operation,
    image: Sequence[Field],
    kernel: Sequence[Field],
    is_weight: bool,
    num_in: int,
    num_out: int,
    into: int,
) -> tuple[Field, ...]:
    """Fields, one dim each, of the output channels of a full convolution."""
    channels = [replace(one, ids=one.ids.reshape(-1, 1)) for one in image]
    kernels = [replace(one, ids=_in_by_out(one.ids, into)) for one in kernel]
    if not is_weight:
        channels = list(op.bonds.collapse_all(channels, [0]))
        kernels = list(op.bonds.collapse_all(kernels, [0]))
    wide_in = frozenset({0}) if num_in > 1 else frozenset()
    wide_out = frozenset({1}) if num_out > 1 else frozenset()
    read = [one for one in kernels if 0 in one.dims]
    fields = op.bonds.unify([(Labels(tuple(channels)), wide_in), (Labels(tuple(kernels)), wide_in | wide_out)])
    op.bonds.mark(read, "in")
    op.bonds.mark((one for one in channels if 0 in one.dims), "out")
    return _each((one for one in fields if 0 not in one.dims), lambda ids: ids[0])


def _product_of_groups(
    op: Operation,
    image: Sequence[Field],
    kernel: Sequence[Field],
    groups: int,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    transposed: bool,
) -> tuple[Field, ...]:
    """Fields, one dim each, of the output channels of a grouped convolution: a group is a unit."""

    def by_group(fields: Iterable[Field], size: int) -> list[Field]:
        shape = torch.Size([groups, size // groups])
        grouped = [replace(one, ids=reshaped(one.ids.flatten(), torch.Size([size]), shape)) for one in fields]
        return list(op.bonds.collapse_all(grouped, [1]))

    rows = [one for one in kernel if 0 in one.dims]
    op.bonds.pin(one for one in kernel if 1 in one.dims)  # within a group nothing is dealt out
    a, b = by_group(image, x.shape[1]), by_group(rows, weight.shape[0])
    wide = frozenset({0})
    fields = op.bonds.unify([(Labels(tuple(a)), wide), (Labels(tuple(b)), wide)])
    return _each(fields, lambda ids: ids.expand(groups, out.shape[1] // groups).reshape(-1))


def _in_by_out(ids: Tensor, into: int) -> Tensor:
    """A kernel's labels over (in, out), without the dims in space, along which they do not vary."""
    ids = ids.reshape(ids.shape[:2])
    return ids if into == 0 else ids.t()
