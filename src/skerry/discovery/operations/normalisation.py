"""Rules of layer norm, group norm and batch norm: statistics over some dims, then an affine map."""

import torch
from torch import Tensor, nn

from skerry.discovery.index_labels import Labels, map_ids, reshaped
from skerry.discovery.operations.operation import Operation, RuleTable, wide_dims

rules = RuleTable()


@rules.add("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(op: Operation) -> list[Labels]:
    """Statistics over the last dims, and an affine map along them."""
    x = op.args[0]
    labels, wide = op.aligned(x, x.dim())
    pairs = [(op.collapsed(labels, range(x.dim() - len(op.args[1]), x.dim())), wide)]
    pairs += [op.aligned(t, x.dim()) for t in op.args[2:4] if isinstance(t, Tensor)]
    return op.first_has(op.combined(pairs))


@rules.add("native_group_norm")
def group_norm(op: Operation) -> list[Labels]:
    """Statistics over the channels of a group, so a group is a unit."""
    x, num_groups = op.args[0], int(op.args[6])
    channels = x.shape[1]
    if not isinstance(op.module, nn.GroupNorm):
        num_groups = 1  # a number of groups that is written out elsewhere would stay the same in a narrow net
    grouped = torch.Size([num_groups, channels // num_groups])
    pairs = []
    for tensor, dim in ((x, 1), (op.args[1], 0), (op.args[2], 0)):
        if isinstance(tensor, Tensor):
            along = op.collapsed(op.labels_of(tensor), [d for d in range(tensor.dim()) if d != dim])
            fields = map_ids(along.fields, lambda ids: reshaped(ids.flatten(), torch.Size([channels]), grouped))
            pairs.append((Labels(op.constraints.collapse_all(fields, [1])), frozenset({0})))
    groups = op.combined(pairs)
    shape = [channels if d == 1 else 1 for d in range(x.dim())]
    return op.first_has(Labels(map_ids(groups.fields, lambda ids: ids.expand(grouped).reshape(shape))))


@rules.add("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
           "_batch_norm_with_update", "_batch_norm_no_update")  # fmt: skip
def batch_norm(op: Operation) -> list[Labels]:
    """Statistics and an affine map for each channel on its own."""
    x = op.args[0]
    labels, wide = op.aligned(x, x.dim())
    pairs = [(op.collapsed(labels, [d for d in range(x.dim()) if d != 1]), wide)]
    shape = [1, -1] + [1] * (x.dim() - 2)
    for tensor in op.args[1:5]:
        if isinstance(tensor, Tensor):
            along = map_ids(op.labels_of(tensor).fields, lambda ids: ids.view(shape))
            pairs.append((Labels(along), wide & {1}))
    return op.first_has(op.combined(pairs))


@rules.add("_weight_norm_interface")
def weight_norm(op: Operation) -> list[Labels]:
    """``g v / |v|``, a norm for each index of one dim. It may leave out what it sums over where the product does, too.

    So that dim must make units, and the others must sum over them, or nothing of it is dealt out.
    """
    v, g, dim = op.args[0], op.args[1], int(op.arg(2, "dim", 0))
    direction, norm = op.labels_of(v), op.labels_of(g)
    fields = op.constraints.unify([(direction, wide_dims(v)), (norm, wide_dims(g))])
    op.constraints.mark((one for one in fields if one.dims == {dim}), "out")
    op.constraints.mark((one for one in fields if one.dims != {dim}), "in")
    return op.first_has(Labels(fields, weight=direction.weight and norm.weight))
