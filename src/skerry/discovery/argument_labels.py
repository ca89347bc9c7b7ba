"""Labels of arguments that a module gets and that are made of numbers alone, such as slopes of position biases.

What a forward makes of its own numbers has a fixed size, so heads that meet it would stay whole. But a module can cut
what it gets (``subnet/cut_arguments.py``). So each time that a module is entered, such an argument has new labels. The
solver keeps those that belong to attention heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils.weak import WeakTensorKeyDictionary

from skerry.discovery.index_labels import Field, Labels


class Labelling(Protocol):
    """Who has the labels: the tracer."""

    labels: Any
    labelled: Any

    def new_labels(self, size: int) -> Tensor:
        """Return labels that nothing has yet."""


class Arguments:
    """Gives labels to arguments of modules while a model runs.

    Attributes:
        found: (module, argument, dim, its labels).
    """

    def __init__(self, model: nn.Module, labelling: Labelling) -> None:
        self.found: list[tuple[str, str, int, Tensor]] = []
        self._labelling = labelling
        self._modules = {n: m for n, m in model.named_modules() if n and next(m.children(), None) is not None}
        self._weights: Any = WeakTensorKeyDictionary()  # what depends on them
        self._numbers: Any = WeakTensorKeyDictionary()  # what is made of different numbers, and not of weights
        self._before: list[list[tuple[Tensor, Labels | None]]] = []
        for tensor in labelling.labelled.values():
            self._weights[tensor] = True

    def note(self, inputs: Sequence[Tensor], outs: Sequence[Tensor], varies: bool) -> None:
        """Note what the results of an operation are made of; ``varies``: they are constants with different elements."""
        weights = any(t in self._weights for t in inputs)
        numbers = not weights and (varies or any(t in self._numbers for t in inputs))
        for out in outs:
            if weights:
                self._weights[out] = True
            elif numbers:
                self._numbers[out] = True

    @contextmanager
    def labelled(self) -> Iterator[None]:
        """Give labels to what modules get, as long as they run."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, name: str, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        labels, before = self._labelling.labels, []
        with no_dispatch():
            for argument, value in (*enumerate(args), *kwargs.items()):
                if isinstance(value, Tensor) and value.is_floating_point() and value in self._numbers:
                    before.append((value, labels.get(value)))
                    labels[value] = Labels(tuple(self._fields(name, f"{argument}", value)))
        self._before.append(before)

    def _fields(self, module: str, argument: str, tensor: Tensor) -> Iterator[Field]:
        for d, size in enumerate(tensor.shape):
            if size > 1:
                ids = self._labelling.new_labels(size)
                self.found.append((module, argument, d, ids))
                yield Field(ids.view([-1 if k == d else 1 for k in range(tensor.dim())]))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        for tensor, labels in self._before.pop():
            if labels is None:
                self._labelling.labels.pop(tensor, None)
            else:
                self._labelling.labels[tensor] = labels
