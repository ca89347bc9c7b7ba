"""The streamed full model: each tensor is gathered from all processes when the forward uses it, then dropped.

Vectors and scalars (biases, norms and their statistics) are gathered once and stay: they are small, and batch norm's
statistics are estimated in place. A larger tensor is gathered when an operation uses it. It stays while the gathered
tensors together are no larger than the largest one. So memory is that of the largest tensor, or of those that one
operation uses. Gathering is collective: every process must run the same operations, equally often.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from skerry.merge.calibrate import scale_, weight_norms
from skerry.model.tensors import fill_, frozen_names, named_tensors, saved_names, skeleton
from skerry.partitions.share import Share
from skerry.plan.table import Plan

Gather = Callable[..., Mapping[str, Tensor]]
"""``gather(names, *, only_first)`` returns full tensors by name, in all processes or in the first only.

Every process must call it. Without names it only checks that all processes do so.
"""


CPU = torch.device("cpu")


class Streamed(nn.Module):
    """A full model that no process holds.

    Args:
        model: its modules, with tensors on the meta device.
        plan: its plan.
        share: how likely a subnet has each unit (``merge/calibrate.py``).
        gather: returns full tensors.
        device: where they are.
    """

    def __init__(self, model: nn.Module, plan: Plan, share: Share, gather: Gather, device: torch.device = CPU) -> None:
        super().__init__()
        self._plan, self._share, self._gather = plan, share, gather
        empty, self._frozen, self._norms = named_tensors(model), frozen_names(model), weight_norms(model)
        self._large = [name for name, tensor in empty.items() if tensor.dim() > 1]
        small = gather([name for name in empty if name not in self._large], only_first=False)
        self._most = max((empty[name].nbytes for name in self._large), default=0)
        self.inner: nn.Module = fill_(skeleton(model), {**empty, **{n: self._scaled(n, t) for n, t in small.items()}})
        self.eval()
        self._names = {id(p): n for n, p in [*self.inner.named_parameters(), *self.inner.named_buffers()]}
        self._names = {key: name for key, name in self._names.items() if name in self._large}
        self._cached: dict[str, Tensor] = {}
        self.device = device

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the full model, without gradients."""
        try:
            with torch.no_grad(), _WithValues(self):
                output = self.inner(*args, **kwargs)
            self._gather([], only_first=False)  # all processes have finished it
            return output
        finally:
            self._cached.clear()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors by name, in the first process only; every process must iterate over all of them."""
        self._cached.clear()
        for name, tensor in named_tensors(self.inner).items():
            if name in self._large:
                gathered = self._gather([name], only_first=True)
                if gathered:
                    yield name, self._scaled(name, gathered[name])
            else:
                yield name, tensor

    def names(self, name: str) -> list[str]:
        """Return the names of a tensor in the ``state_dict``."""
        return saved_names(self.inner, name)

    def whole(self) -> nn.Module:
        """Raise ValueError."""
        raise ValueError(
            "no process holds the full model; write it to files with result.export(folder) in every process"
        )

    def is_own(self, tensor: Tensor) -> bool:
        """Tell whether ``tensor`` is one of the model's empty tensors."""
        return id(tensor) in self._names

    def real(self, tensor: Tensor) -> Tensor:
        """Return the values of one of the model's empty tensors; any other tensor unchanged."""
        name = self._names.get(id(tensor))
        if name is None:
            return tensor
        if name not in self._cached:
            held = sum(t.nbytes for t in self._cached.values())
            while self._cached and held + tensor.nbytes > self._most:
                held -= self._cached.pop(next(iter(self._cached))).nbytes
            self._cached[name] = self._scaled(name, self._gather([name], only_first=False)[name])
        return self._cached[name]

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if name not in self._large else tensor
        if name not in self._frozen:
            scale_(name, tensor, self._plan, self._share, self._norms)
        return tensor


_DEVICE = torch.Tensor.device.__get__
# Attributes and methods that need no values.
_ABOUT = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "layout", "requires_grad", "is_leaf")),
    *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "is_complex")),
}


class _WithValues(TorchFunctionMode):
    """Replaces the full model's empty tensors by their values in every operation of a forward."""

    def __init__(self, streamed: Streamed) -> None:
        super().__init__()
        self._streamed = streamed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ABOUT:
            return func(*args, **(kwargs or {}))
        if func == _DEVICE and self._streamed.is_own(args[0]):
            return self._streamed.device
        args, kwargs = tree_map_only(Tensor, self._streamed.real, (args, kwargs or {}))
        return func(*args, **kwargs)
