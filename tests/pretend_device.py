"""A device that this machine does not have: tensors that say they are on ``pretend:0`` and compute on the CPU.

It is as strict as CUDA about tensors of several devices (the rules are those of torch's FakeTensorMode), and has
values, so whole trainings run and are compared with the CPU to the bit. Within ``no_waiting``, whatever makes the host
wait for the device is an error. FakeTensorMode itself cannot do it: it has no values, and a build of torch without CUDA
has no device guard, so the first backward pass of a fake CUDA tensor ends the process.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
CPU = torch.device("cpu")

_OF_SEVERAL = {  # may take tensors of several devices, on CUDA, too
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
_state = threading.local()


class DeviceMismatch(RuntimeError):
    """An operation got tensors of several devices."""


class HostWaits(RuntimeError):
    """The host waits for the device where it must not."""


class Backend(_DummyBackendModule):
    """``torch.pretend``. Its random state is a number; the values that are drawn are those of the CPU.

    It is available within ``pretend()`` only: other tests of the process have no such device.
    """

    state = 0
    num_users = 0

    def is_available(self) -> bool:
        return self.num_users > 0

    def get_rng_state(self, device: torch.device) -> Tensor:
        return torch.tensor(self.state)

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.state = int(state)

    def manual_seed(self, seed: int) -> None:
        self.state = seed

    manual_seed_all = manual_seed


backend = Backend()


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return backend.is_available()


# At import: autograd counts devices at the first backward pass of the process.
_setup_privateuseone_for_python_backend("pretend", backend, _Hook())
DEVICE = torch.device("pretend", 0)


class OnDevice(Tensor):
    """A tensor on the device; ``on_host`` has its values."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, on_host: Tensor) -> "OnDevice":
        new: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            on_host.shape,
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
            layout=on_host.layout,
            device=DEVICE,
        )
        new.on_host = on_host
        return new

    def __repr__(self) -> str:
        return f"OnDevice({self.on_host})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Creates(TorchDispatchMode):
    """Makes new tensors on the device where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if OnDevice not in types and kwargs.get("device") != DEVICE:
            return func(*args, **kwargs)
        return _run(func, args, kwargs)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the values; what it returns is on the device on which CUDA would have it."""
    given = list(_tensors((args, kwargs)))
    ours = [t for t in given if isinstance(t, OnDevice)]
    asked = kwargs.get("device")
    if asked is not None:
        target = torch.device(asked)
    elif func is aten.copy_.default:
        target = args[0].device
    else:
        target = DEVICE if ours else CPU
    others = [t for t in given if not isinstance(t, OnDevice) and t.dim()]
    if ours and others and func not in _OF_SEVERAL:
        raise DeviceMismatch(f"{func}: a tensor on {DEVICE} and one of shape {tuple(others[0].shape)} on the CPU")
    if ours and getattr(_state, "quiet", False) and _waits(func, args, target):
        raise HostWaits(f"{func} makes the host wait for the device")
    args, kwargs = _mapped(lambda t: t.on_host if isinstance(t, OnDevice) else t, (args, kwargs))
    if target != DEVICE:
        return func(*args, **kwargs)
    if asked is not None:
        kwargs = {**kwargs, "device": CPU}
    known = {id(t.on_host): t for t in ours}
    return _mapped(lambda t: known.get(id(t)) if id(t) in known else OnDevice(t), func(*args, **kwargs))


def _mapped(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return ``value`` with its tensors replaced; torch's own ``tree_map`` takes several times as long."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {key: _mapped(fn, item) for key, item in value.items()}
    return type(value)([_mapped(fn, item) for item in value]) if type(value) in (tuple, list) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _waits(func: Any, args: Any, target: torch.device) -> bool:
    by_mask = func is aten.index.Tensor and any(t is not None and t.dtype == torch.bool for t in args[1])
    return func in _WAITS or by_mask or (func in (aten._to_copy.default, aten.copy_.default) and target == CPU)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within the block, whatever makes the host wait for the device is an error."""
    _state.quiet = True
    try:
        yield
    finally:
        _state.quiet = False


@contextmanager
def pretend() -> Iterator[torch.device]:
    """Within the block the device exists, in this thread."""
    backend.num_users += 1
    try:
        with _Creates():
            yield DEVICE
    finally:
        backend.num_users -= 1
