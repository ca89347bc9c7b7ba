"""The rule of operations that work element by element."""

from dataclasses import replace

from skerry.discovery.index_labels import Labels
from skerry.discovery.operations.operation import Operation, RuleTable

rules = RuleTable()

_KEEP_ZERO = ("mul", "div", "neg")
_KEEP_ZERO_IF_ALL_ARE = ("add", "sub")


@rules.add("where", "masked_fill", "copy", "clamp", "lerp", "addcmul", "addcdiv", "gelu", "silu", "mish", "hardswish",
           "hardsigmoid", "hardtanh", "leaky_relu", "elu", "prelu", "_prelu_kernel", "rrelu_with_noise", "softplus",
           "log_sigmoid_forward", "threshold", "celu", "selu", "relu6", "bitwise_and", "isin",
           "nan_to_num", "complex", "polar")  # fmt: skip
def pointwise(op: Operation) -> list[Labels]:
    """Each element of the result needs the elements it was computed from."""
    num_dims = op.outs[0].dim()
    if not num_dims:
        return [Labels(uniform=True) for _ in op.outs]
    inputs = [op.aligned(t, num_dims) for t in op.tensors()]
    if op.name == "mul":
        inputs.sort(key=lambda one: not one[0].weight)  # a mask times a weight
    found = [labels for labels, _ in inputs]
    fields = op.constraints.unify(inputs)
    if all(labels.uniform for labels in found):
        return [Labels(fields, uniform=True) for _ in op.outs]
    wide = frozenset().union(*(dims for _, dims in inputs), *(one.dims for one in fields))
    fields += op.broadcast([d for d, n in enumerate(op.outs[0].shape) if n > 1 and d not in wide])
    first, others = found[0], found[1:]
    scaled = op.name in _KEEP_ZERO and first.weight and all(map(_constant, others))
    # A sum is zero where a weight is only if all of its terms are: each must have labels along the same dims.
    along = [{one.dims for one in labels.fields} for labels in found]
    added = op.name in _KEEP_ZERO_IF_ALL_ARE and len(found) == 2 and all(labels.weight for labels in found)
    if scaled or (added and along[0] == along[1] == {one.dims for one in fields}):
        if scaled:  # w * m: only the dims of w may be marked as summed over
            origins = {one.dims: one.origins for one in first.fields}
            fields = tuple(replace(one, origins=origins.get(one.dims, one.origins)) for one in fields)
        return [Labels(fields, weight=True) for _ in op.outs]
    result = op.constraints.activation(fields)
    if op.name == "exp":
        op.constraints.heads.extend(one.ids.flatten() for one in result)  # a softmax written out
    return [Labels(result) for _ in op.outs]


def _constant(labels: Labels) -> bool:
    """Whether a tensor is of weights or buffers alone, or has one value everywhere."""
    return labels.weight or labels.uniform or bool(labels.fields and all(one.origins for one in labels.fields))
