"""Numbers that must not depend on widths: what operations are given, and what they compute from the code alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

_FROM_NUMBERS_ALONE = ("lift_fresh", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")


class InvariantNumbers:
    """Collects the numbers of each operation that must be the same in a narrow net.

    It remembers which tensors are constants: made from numbers in the code alone, neither from inputs nor from weights.
    """

    def __init__(self) -> None:
        self._constants: Any = WeakTensorKeyDictionary()

    def of(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outs: Sequence[Tensor],
        written: Sequence[Tensor],
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the numbers an operation was given, and the smallest and largest element of a constant result.

        Sizes differ in a narrow net. A factor, or the size of a group to normalise over, must not. A constant that was
        made before, and kept, is not known as one: then the second part is empty.

        Args:
            func: the operation, an ATen overload; it has run.
            args: its positional arguments.
            kwargs: its keyword arguments.
            outs: the tensors it returned.
            written: the arguments it wrote to (``written_by``).
        """
        name = str(func.overloadpacket).removeprefix("aten.")
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        drawn = torch.Tag.nondeterministic_seeded in func.tags or "empty" in name
        constant = name in _FROM_NUMBERS_ALONE or (not drawn and all(t in self._constants for t in inputs))
        for tensor in [*outs, *written]:
            if constant:
                self._constants[tensor] = True
            else:
                self._constants.pop(tensor, None)
                if tensor._base is not None and any(tensor is t for t in written):
                    self._constants.pop(tensor._base, None)
        return _given(func, args, kwargs), (_extremes(outs) if constant else ())


def _given(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    if func.overloadpacket is torch.ops.aten.native_group_norm:
        return (args[4] / args[6],)
    integer = int if torch.Tag.pointwise in func.tags else float  # elsewhere an int is a size, a dim or a flag
    given = [*args, *kwargs.values()]
    return tuple(abs(a) for a in given if isinstance(a, float | complex | integer) and not isinstance(a, bool))


def _extremes(outs: Sequence[Tensor]) -> tuple[float, ...]:
    if not outs or not outs[0].numel() or outs[0].is_complex() or outs[0].is_meta:
        return ()
    values = outs[0].double()
    return (float(values.min()), float(values.max()))


def written_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation writes to."""
    found: list[Tensor] = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[k] if k < len(args) else kwargs.get(argument.name)
            found.extend(t for t in tree_leaves(value) if isinstance(t, Tensor))
    return found
