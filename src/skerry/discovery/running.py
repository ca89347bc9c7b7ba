"""Running: a model as it is, leaving no trace, with the names of the modules that run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def quietly(model: nn.Module, training: bool = False) -> Iterator[None]:
    """One mode, without gradients, with attention spelled out; modes, what modules keep, and random state are put back
    after."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.train(training)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, attributes, buffers in before:  # a forward may have counted calls, or kept a mask
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


@contextlib.contextmanager
def module_names(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep in ``running`` the names of the modules of ``model`` that are being run, innermost last."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, inputs: Any) -> None:
        if id(module) in names:
            running.append(names[id(module)])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) in names:
            running.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
