"""Numbers: what an operation is given, or computes, that must not depend on widths."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


def numbers_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """The numbers an operation was given that must be the same in a narrow net.

    Sizes differ in a narrow net. A number to multiply by, or the size of a group to normalise over, must not.
    """
    if func.overloadpacket is torch.ops.aten.native_group_norm:
        return (args[4] / args[6],)
    whole = int if torch.Tag.pointwise in func.tags else float
    given = [*args, *kwargs.values()]
    return tuple(abs(a) for a in given if isinstance(a, float | complex | whole) and not isinstance(a, bool))


_NUMBERS_ONLY = (
    "lift_fresh", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
)  # fmt: skip


class Constants:
    """Which tensors come from numbers in the code alone, from neither inputs nor weights."""

    def __init__(self) -> None:
        self._known: Any = WeakTensorKeyDictionary()

    def note(
        self, func: Any, inputs: Sequence[Tensor], outs: Sequence[Tensor], written: Sequence[Tensor]
    ) -> tuple[float, ...]:
        """Note the results of an operation; return the extremes of a constant one, nothing for others."""
        name = str(func.overloadpacket).removeprefix("aten.")
        constant = name in _NUMBERS_ONLY or ("empty" not in name and all(t in self._known for t in inputs))
        for tensor in [*outs, *written]:
            if constant:
                self._known[tensor] = True
            else:
                self._known.pop(tensor, None)
                if tensor._base is not None and any(tensor is t for t in written):
                    self._known.pop(tensor._base, None)
        return extremes(outs) if constant else ()


def extremes(outs: Sequence[Tensor]) -> tuple[float, ...]:
    """The smallest and the largest element of a result."""
    if not outs or not outs[0].numel() or outs[0].is_complex():
        return ()
    values = outs[0].double()
    return (float(values.min()), float(values.max()))


def written_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    found: list[Tensor] = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[k] if k < len(args) else kwargs.get(argument.name)
            found.extend(t for t in tree_leaves(value) if isinstance(t, Tensor))
    return found
