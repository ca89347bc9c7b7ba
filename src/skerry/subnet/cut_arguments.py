"""Arguments that have a part for each unit, made outside of a module of numbers alone: a subnet cuts them on entry.

The slopes of linear position biases are the case: the model makes one for each of all heads, and the attention of every
layer gets them. A narrow attention needs those of its heads.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch

PREFIX = "argument "


def name_of(argument: str, dim: int, each: int) -> str:
    """Return the name of a cut in ``Plan.numbers``; a unit has ``each`` neighbouring indices of ``dim``."""
    return f"{PREFIX}{argument} dim {dim} each {each}"


def cut_argument_(narrow: nn.Module, name: str, held: Tensor) -> None:
    """Let ``narrow`` cut the argument ``name`` whenever it is called.

    Args:
        narrow: a module of a subnet.
        name: from ``name_of``.
        held: bool, (units,): which of the axis's units the subnet has.
    """
    _, argument, _, dim, _, each = name.split()
    cut = _Cut(argument, int(dim), int(each), len(held), held.nonzero().flatten())
    narrow.register_forward_pre_hook(cut, with_kwargs=True)


@dataclass(frozen=True, eq=False)
class _Cut:
    argument: str
    dim: int
    each: int
    total: int
    held: Tensor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments with one of them cut, whether it is given by position or by name."""
        names = list(inspect.signature(module.forward).parameters)
        k = int(self.argument) if self.argument.isdigit() else names.index(self.argument)
        name = names[k] if k < len(names) else ""
        if name in kwargs:
            return args, {**kwargs, name: self._of(kwargs[name])}
        return ((*args[:k], self._of(args[k]), *args[k + 1 :]), kwargs) if k < len(args) else None

    def _of(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        before, after = value.shape[: self.dim], value.shape[self.dim + 1 :]
        with no_dispatch():  # not an operation of the module
            parts = value.reshape(*before, -1, self.total, self.each, *after)
            return parts.index_select(self.dim + 1, self.held.to(value.device)).reshape(*before, -1, *after)
