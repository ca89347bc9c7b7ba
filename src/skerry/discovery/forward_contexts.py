"""Contexts for running a model's forward: without side effects, and with a view of which modules run."""

import random
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from skerry.randomness import own_random_state


@contextmanager
def without_side_effects(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Run ``model`` in one mode, without gradients; attention, recurrent layers and relations as separate operations.

    On meta, what comes from inputs alone has values (``ValuesOfInputs``).

    Afterwards modes, attributes of modules and what is in their dicts, lists and sets, and the random state are as
    before. What a forward writes into a buffer in place is not undone.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    held = [(value, value.copy()) for _, attributes in before for value in attributes.values() if _holds(value)]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.train(training)
    torch.backends.mha.set_fastpath_enabled(False)
    pyg = getattr(sys.modules.get("torch_geometric"), "backend", None)
    by_width = getattr(pyg, "use_segment_matmul", None)
    if pyg is not None:
        pyg.use_segment_matmul = False  # else it chooses by the width between two ways of computing the same
    try:
        with ExitStack() as stack, torch.no_grad(), own_random_state(), same_draws(), sdpa_kernel(SDPBackend.MATH):
            stack.enter_context(_unrolled(model))
            stack.enter_context(parametrize.cached())  # a recurrent layer asks for its weights as often as they moved
            if any(parameter.is_meta for parameter in model.parameters()):
                stack.enter_context(ValuesOfInputs())
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if pyg is not None:
            pyg.use_segment_matmul = by_width
        for module, attributes in before:  # a forward may have counted calls, or kept a mask
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in held:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


@contextmanager
def same_draws() -> Iterator[None]:
    """Let Python and NumPy draw the same numbers in every run (negative samples of a graph); restore their states."""
    before, numpys = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)


def _holds(value: object) -> bool:
    return type(value) in (dict, OrderedDict, defaultdict, list, set)


class ValuesOfInputs(TorchDispatchMode):
    """Runs a model on meta with real inputs: what depends on a weight has only a shape, all else has values.

    So a forward may look at values of its inputs: how many nodes the edges of a graph name, where a mask is true. Whole
    numbers that it makes itself have values, too: the positions of tokens.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, on meta if one of its tensors is there."""
        aten, kwargs = torch.ops.aten, kwargs or {}
        if any(t.is_meta for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
            if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
                args = (args[0], [at for one in args[1] for at in _positions(one)], *args[2:])
            args, kwargs = tree_map_only(Tensor, _without_values, (args, kwargs))
        result = func(*args, **kwargs)
        if func.overloadpacket in (aten.arange, aten.full, aten.ones, aten.zeros) and _whole_numbers_on_meta(result):
            result = func(*args, **{**kwargs, "device": torch.device("cpu")})  # positions, masks
        return result


def _whole_numbers_on_meta(tensor: Tensor) -> bool:
    return tensor.is_meta and not tensor.is_floating_point() and not tensor.is_complex()


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return an index as positions: how many a mask selects cannot be told on meta."""
    if index is None or index.is_meta or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return torch.where(index)


def _without_values(tensor: Tensor) -> Tensor:
    """Return a dense tensor on meta of the same shape."""
    return (
        tensor.to("meta")
        if tensor.layout == torch.strided
        else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    )


@contextmanager
def _unrolled(model: nn.Module) -> Iterator[None]:
    """Run recurrent layers, if there are any, as separate operations."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    backends: tuple[Any, ...] = torch.backends.mkldnn, torch.backends.cudnn
    before = [backend.enabled for backend in backends]
    try:
        for backend in backends:
            backend.enabled = False
        with _FewTimeSteps():
            yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled


class _FewTimeSteps(TorchFunctionMode):
    """Runs recurrent layers over two time steps: all later steps do the same operations, and repeat the second one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function; packed sequences are run over all steps."""
        name = getattr(func, "__name__", "")
        if name not in ("lstm", "gru", "rnn_tanh", "rnn_relu") or not isinstance(args[2], list):
            return func(*args, **(kwargs or {}))
        x, time = args[0], 1 if args[8] else 0
        steps = torch.arange(x.shape[time], device=x.device).clamp(max=1)
        two = torch.arange(2, device=x.device).clamp(max=x.shape[time] - 1)  # a sequence of one step is run twice
        y, *state = func(x.index_select(time, two), *args[1:])
        return y.index_select(time, steps), *state


class WithoutDropout(TorchDispatchMode):
    """Lets dropout and stochastic depth keep all they get, in training mode as well."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; for those that draw what to drop, return the mean of what they would draw."""
        aten, kwargs = torch.ops.aten, kwargs or {}
        if func is aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        if func is aten.bernoulli.p:
            return torch.full_like(args[0], args[1])
        if func is aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if func.overloadpacket in (aten.rrelu_with_noise, aten.rrelu_with_noise_):
            args = (*args[:4], False, *args[5:])
        return func(*args, **kwargs)


class InEinsum(TorchFunctionMode):
    """Tells whether ``torch.einsum`` is ``running``: what it does inside depends on which dims have one index."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function."""
        self.running = func is torch.einsum
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running = False


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
