"""Contexts for running a model's forward: without side effects, and with a view of which modules run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerry.randomness import own_random_state


@contextmanager
def without_side_effects(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Run ``model`` in one mode, without gradients and with attention as separate operations.

    Afterwards modes, attributes and buffers of modules, and the random state are as before. What a forward writes into
    a buffer in place is not undone.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.train(training)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), own_random_state(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, attributes, buffers in before:  # a forward may have counted calls, or kept a mask
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


class Running:
    """The modules of ``model`` that are running, by name, innermost last; empty between its forwards."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []

    @property
    def innermost(self) -> str:
        """The name of the innermost module, "" for the model itself or if none is running."""
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Follow which modules run. After an error ``innermost`` is the module that raised it."""

        def enter(module: nn.Module, inputs: Any) -> None:
            if id(module) in self._names:
                self._stack.append(self._names[id(module)])

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if id(module) in self._names:
                self._stack.pop()

        register = nn.modules.module
        hooks = register.register_module_forward_pre_hook(enter), register.register_module_forward_hook(leave)
        with _removed_afterwards(hooks):
            yield


@contextmanager
def after_each(modules: Mapping[str, nn.Module], hook: Callable[[str, tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Call ``hook(name, positional arguments, output)`` whenever one of ``modules``, by name, has run."""

    def call(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hook(name, args, output)

    hooks = [module.register_forward_hook(partial(call, name)) for name, module in modules.items()]
    with _removed_afterwards(hooks):
        yield


@contextmanager
def _removed_afterwards(hooks: Iterable[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
