"""Sizes that a forward writes out or takes from its input: in a subnet they are replaced while the forward runs.

``x.view(B, N, heads, C // heads)`` with C taken from the input keeps no number that could be scaled. So each size is
named by where it stands: ``size 6 at dim 3 of 5``, which is the number of a tensor's dims. A narrow module gets a
forward that puts another size there.
"""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PREFIX = "size "

_RESHAPES = (Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand)
_SPLITS = (Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes)
_UNFLATTENS = (Tensor.unflatten, torch.unflatten)
_MAKERS = (torch.zeros, torch.ones, torch.empty, torch.full)
_MAKERS_LIKE = (Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full)  # after the tensor they are like

Place = tuple[int, int, int]
"""The size that a forward gives a dim, the dim, and the number of dims."""


def name_of(place: Place) -> str:
    """Return the name of a place in ``Plan.numbers``."""
    return PREFIX + "{} at dim {} of {}".format(*place)


def scale_size_(narrow: nn.Module, full: nn.Module, name: str, held: int, total: int) -> None:
    """Let the size ``name`` in the forward of ``narrow`` be that of ``full`` times ``held`` / ``total``."""
    size, dim, num_dims = (int(word) for word in name.split() if word.isdigit())
    place = size, dim, num_dims
    now = getattr(full, "sizes_in_forward", {}).get(place, size)
    narrow.sizes_in_forward = {**getattr(narrow, "sizes_in_forward", {}), place: now * held // total}  # type: ignore[assignment]
    narrow.forward = types.MethodType(_forward, narrow)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    with _Sizes(self.sizes_in_forward):
        return type(self).forward(self, *args, **kwargs)


class _Sizes(TorchFunctionMode):
    """Replaces sizes in reshapes, expansions and splits where those given do not fit, and in tensors that are made."""

    def __init__(self, sizes: Mapping[Place, int]) -> None:
        super().__init__()
        self._sizes = sizes

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RESHAPES and len(args) > 1 and not isinstance(args[1], torch.dtype):
            sizes = args[1] if isinstance(args[1], Sequence) else args[1:]
            fits = func is not Tensor.expand and -1 not in sizes and math.prod(sizes) == args[0].numel()
            args = (args[0], [self.at(size, d, len(sizes), fits) for d, size in enumerate(sizes)])
        elif func in _SPLITS and len(args) > 1:
            x, parts = args[:2]
            dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
            if isinstance(parts, int):
                parts = self.at(parts, dim, x.dim(), False)
            else:
                parts = [self.at(part, dim, x.dim(), sum(parts) == x.shape[dim]) for part in parts]
            args = (x, parts, *args[2:])
        elif func in _UNFLATTENS and len(args) > 2:
            x, dim, sizes = args[0], args[1] % args[0].dim(), args[2]
            fits = -1 not in sizes and math.prod(sizes) == x.shape[dim]
            num_dims = x.dim() + len(sizes) - 1
            args = (x, dim, [self.at(size, dim + k, num_dims, fits) for k, size in enumerate(sizes)], *args[3:])
        elif func in _MAKERS or func in _MAKERS_LIKE:
            like, sizes = args[: func in _MAKERS_LIKE], args[func in _MAKERS_LIKE :]
            rest: Sequence[Any] = ()
            if "size" in kwargs:
                sizes, rest = kwargs["size"], sizes
            elif sizes and isinstance(sizes[0], Sequence):
                sizes, rest = sizes[0], sizes[1:]
            args = (*like, [self.at(size, d, len(sizes), False) for d, size in enumerate(sizes)], *rest)
            kwargs = {name: value for name, value in kwargs.items() if name != "size"}
        return func(*args, **kwargs)

    def at(self, size: int, dim: int, num_dims: int, fits: bool) -> int:
        """Return the size to put in the place of ``size``."""
        return size if fits else self._sizes.get((int(size), dim, num_dims), size)


class SizesGiven(_Sizes):
    """Notes which sizes forwards give, by module, and before which operations.

    ``module`` returns the name of the module that runs, ``number`` how many operations have run.
    """

    def __init__(self, module: Callable[[], str], number: Callable[[], int]) -> None:
        super().__init__({})
        self.given: dict[str, dict[Place, set[int]]] = {}
        self._module, self._number = module, number

    def at(self, size: int, dim: int, num_dims: int, fits: bool) -> int:
        """Note a size and return it."""
        self.given.setdefault(self._module(), {}).setdefault((int(size), dim, num_dims), set()).add(self._number())
        return size
