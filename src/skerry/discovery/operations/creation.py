"""Rules of operations that create tensors."""

from torch import Tensor

from skerry.discovery.index_labels import Labels
from skerry.discovery.operations.operation import Operation, RuleTable

rules = RuleTable()


@rules.add(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
    "full_like", "empty_like", "bernoulli", "scalar_tensor", "empty_strided", "new_empty_strided", "fill", "zero",
    "empty_permuted",
)  # fmt: skip
def uniform(op: Operation) -> list[Labels]:
    """One value everywhere fits any width: code that writes the width out fails in a narrow net.

    The noise of dropout does too, because each element draws its own.
    """
    if op.in_place and op.args and isinstance(op.args[0], Tensor):
        return [op.labels_of(op.args[0])]  # a tensor that is filled keeps its labels
    wide = [d for d, n in enumerate(op.outs[0].shape) if n > 1]  # its size must still be one and the same for all users
    return [Labels(op.broadcast(wide), uniform=True) for _ in op.outs]


@rules.add("arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "rand_like", "randn_like",
           "tril_indices")  # fmt: skip
def not_uniform(op: Operation) -> list[Labels]:
    """Values that depend on the position or are random would differ in a narrow tensor, so the size is fixed."""
    return [Labels() for _ in op.outs]
