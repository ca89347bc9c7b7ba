"""Rules of operations that only move elements: views, permutations, broadcasting, copies."""

from dataclasses import replace

import torch

from skerry.discovery.index_labels import Field, Labels, map_ids, padded, reshaped
from skerry.discovery.operations.operation import Operation, RuleTable, pin_everything

rules = RuleTable()


@rules.add("clone", "detach", "alias", "lift_fresh", "contiguous", "_to_copy", "dropout", "native_dropout",
           "_conj")  # fmt: skip
def unchanged(op: Operation) -> list[Labels]:
    """The same elements in the same places."""
    return op.first_has(op.labels_of(op.args[0]))


@rules.add("view_as_real", "view_as_complex")
def pairs(op: Operation) -> list[Labels]:
    """A complex number is a dim of two."""
    x = op.args[0]
    if op.name == "view_as_real":
        return [replace(old := op.labels_of(x), fields=map_ids(old.fields, lambda ids: ids.unsqueeze(-1)))]
    left = op.collapsed(op.labels_of(x), [x.dim() - 1])
    return [replace(left, fields=map_ids(left.fields, lambda ids: ids.squeeze(-1)))]


@rules.add("unfold")
def windows(op: Operation) -> list[Labels]:
    """Windows that slide along a dim; their places are a new last dim."""
    left = op.collapsed(op.labels_of(op.args[0]), [int(op.args[1]) % op.args[0].dim()])
    return [replace(left, fields=map_ids(left.fields, lambda ids: ids.unsqueeze(-1)))]


@rules.add("as_strided")
def as_strided(op: Operation) -> list[Labels]:
    """Known only where it changes the strides of dims with one index (pooling channels-last images): nothing moves."""
    assert op.layout is not None
    (shape, strides), size, wanted = op.layout, tuple(op.args[1]), tuple(op.args[2])
    moved = any(n > 1 and a != b for n, a, b in zip(size, strides, wanted, strict=False))
    if size != tuple(shape) or moved or op.arg(3, "storage_offset") is not None:
        return pin_everything(op)
    return [op.labels_of(op.args[0])]


@rules.add("t", "transpose", "permute", "unsqueeze", "movedim")
def permute(op: Operation) -> list[Labels]:
    """Dims change places. A field has the same number of dims, so the same operation is applied to it."""
    old = op.labels_of(op.args[0])
    return [replace(old, fields=map_ids(old.fields, lambda ids: op.packet(ids, *op.args[1:])))]


@rules.add("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "flatten", "unflatten")
def reshape(op: Operation) -> list[Labels]:
    """Dims are split and merged. Where labels then vary along several dims, the outermost must carry the units."""
    x, out = op.args[0], op.outs[0]
    old = op.labels_of(x)
    if x.numel() == 0 or isinstance(op.arg(1), torch.dtype):
        return pin_everything(op)
    fields = map_ids(old.fields, lambda ids: reshaped(ids, x.shape, out.shape))
    op.constraints.outermost.extend((one.ids, op.constraints.op) for one in fields if len(one.dims) > 1)
    return [replace(old, fields=_one_per_dim(op, fields))]


def _one_per_dim(op: Operation, fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Where a merge has put several fields along one dim, keep the first that was not broadcast, from the outer dim."""
    kept: list[Field] = []
    for one in sorted(fields, key=lambda f: (f.free, min(f.dims), _num_changes(f))):
        taken = frozenset(d for f in kept for d in f.dims) & one.dims
        left = op.constraints.collapse(one, taken)
        op.constraints.preferred.extend(f.ids for f in kept if f.dims & taken)
        if left is not None:
            kept.append(left)
    return tuple(kept)


def _num_changes(one: Field) -> int:
    """Count how often neighbours differ along the outermost dim: less often for what came from an outer dim."""
    d = min(one.dims)
    ids = one.ids.movedim(d, 0).reshape(one.ids.shape[d], -1)[:, 0]
    return int((ids[1:] != ids[:-1]).sum())


@rules.add("expand")
def expand(op: Operation) -> list[Labels]:
    """Broadcasting: whatever has units along the new dims may be combined with it."""
    old, num_dims = op.labels_of(op.args[0]), op.outs[0].dim()
    return [replace(old, fields=tuple(padded(one, num_dims) for one in old.fields) + _broadcast(op))]


def _broadcast(op: Operation) -> tuple[Field, ...]:
    before, after = op.args[0].shape, op.outs[0].shape
    before = (1,) * (len(after) - len(before)) + tuple(before)
    larger = [d for d, (a, b) in enumerate(zip(before, after, strict=True)) if a == 1 < b]
    return op.broadcast(larger)


@rules.add("repeat")
def repeat(op: Operation) -> list[Labels]:
    """The whole tensor again along a dim, so its labels again."""
    old, times = op.labels_of(op.args[0]), list(op.args[1])

    def again(ids: torch.Tensor) -> torch.Tensor:
        ids = ids.view((1,) * (len(times) - ids.dim()) + ids.shape)
        return ids.repeat([k if n > 1 else 1 for k, n in zip(times, ids.shape, strict=True)])

    return [replace(old, fields=map_ids(old.fields, again) + _broadcast(op))]
