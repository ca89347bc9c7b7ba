"""A subnet made ready for its local steps: reduced precision, recomputed activations, compiled. All of it in place."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from skerry.model.inputs import map_tensors
from skerry.subnet.extract import Skipped
from skerry.subnet.side_by_side import nets_of
from skerry.training.steps.settings import StepSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def prepared(subnet: nn.Module, settings: StepSettings, device: torch.device) -> Iterator[None]:
    """Make ``subnet`` ready for local steps on ``device``, unless it is; afterwards its forwards are as they were.

    Raises:
        ValueError: activations are to be recomputed, and it has no repeated blocks.
    """
    if any(_own_forward(module) is not None for module in subnet.modules()):
        yield
        return
    blocks = repeated_blocks(subnet) if settings.checkpoint_activations else []
    for block in blocks:
        block.forward = partial(_recomputed, block.forward, block)
    nets = list(nets_of(subnet).values())
    for net in nets:
        if settings.compile:
            net.forward = partial(_compiled, net.forward)
        if settings.precision in DTYPES:
            net.forward = partial(_in_autocast, net.forward, DTYPES[settings.precision], device.type)
    try:
        yield
    finally:  # or the subnet would be part of a cycle, and its memory be free only when that is collected
        for module in (*nets, *blocks):
            vars(module).pop("forward", None)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules with parts of their own of which a list or sequence has several of that class.

    Raises:
        ValueError: there are none.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in (m for net in nets_of(model).values() for m in net.modules()):
        if isinstance(module, nn.ModuleList | nn.Sequential) and module not in inside:
            kinds = [type(child) for child in module]
            for child in module:
                num = kinds.count(type(child)) + kinds.count(Skipped)  # a subnet may lack some of them
                if num > 1 and any(True for _ in child.children()):
                    found.append(child)
                    inside |= set(child.modules())
    if not found:
        raise ValueError(
            "checkpoint_activations: found no repeated blocks in the model (modules of one class in an nn.ModuleList "
            "or nn.Sequential); call torch.utils.checkpoint in its forward yourself"
        )
    return found


def autocast_device(subnet: nn.Module) -> str | None:
    """Return the type of the device on which the forward of a prepared subnet is in autocast; None without autocast."""
    own = (_own_forward(net) for net in nets_of(subnet).values())
    return next((str(forward.args[2]) for forward in own if forward and forward.func is _in_autocast), None)


def _own_forward(module: nn.Module) -> "partial[Any] | None":
    forward = vars(module).get("forward")
    is_ours = isinstance(forward, partial) and forward.func in (_in_autocast, _recomputed, _compiled)
    return forward if is_ours else None


def _compiled(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # While operations are counted: torch would never compile the subnet again. Its flag for it, which
    # is_in_torch_dispatch_mode() returns, stays set where modes end in another order than they began.
    if _get_current_dispatch_mode() is not None:
        return forward(*args, **kwargs)
    return _compiled_call()(forward, args, kwargs)


@cache
def _compiled_call() -> Callable[..., Any]:
    """Return ``_call``, compiled; one function for all subnets, so that those of the same sizes share what it keeps."""
    return torch.compile(_call, dynamic=False)


def _call(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return forward(*args, **kwargs)


def _in_autocast(forward: Callable[..., Any], dtype: torch.dtype, device: str, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(device, dtype):
        output = forward(*args, **kwargs)
    return map_tensors(lambda t: t.float() if t.dtype in DTYPES.values() else t, output)


def _recomputed(forward: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _same_statistics(block)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _same_statistics(block: nn.Module) -> Iterator[None]:
    """Computing a block once more must not count a batch twice in the statistics of a batch norm."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield  # ends by an exception as soon as all is computed that is missing
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # of data: the backward pass saved them, but does not read them
