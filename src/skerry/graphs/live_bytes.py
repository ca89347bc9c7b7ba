"""How many bytes of tensors a computation has at once."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and that are still in use.

    Not of what an operation uses inside, and not of tensors that lie in a file or on meta.

    Attributes:
        most: the most bytes at once so far.

    Example:
        >>> with LiveBytes() as live:
        ...     for _ in range(3):
        ...         ones = torch.ones(256)
        >>> live.most  # the next is made before the last is dropped
        2048
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._users: dict[int, int] = {}  # tensors by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        known = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                key = _key(tensor)
                there = key in known or tensor.is_meta or func.overloadpacket is torch.ops.aten.from_file
                if key in self._users or not there:  # not a view of what was there before
                    self._add(tensor, key)
        return result

    def _add(self, tensor: Tensor, key: int) -> None:
        num_bytes = tensor.untyped_storage().nbytes()
        if key not in self._users:
            self._now += num_bytes
            self.most = max(self.most, self._now)
        self._users[key] = self._users.get(key, 0) + 1
        weakref.finalize(tensor, self._drop, key, num_bytes)

    def _drop(self, key: int, num_bytes: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._now -= num_bytes


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)
