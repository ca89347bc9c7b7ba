"""Inputs of graph networks: a graph of PyTorch Geometric, and which of the model's outputs have labels."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class GraphInputs:
    """A graph, and the outputs of a model on it that have labels: its samples.

    Attributes:
        graph: ``Data``, ``HeteroData`` or ``Batch`` of PyTorch Geometric.
        rows: the samples, as rows of the model's output, int64.
        kind: the type of nodes that they are of, where the model returns a dict by type of node; else empty.
        moved: where copies of the graph on other devices are kept, for graphs that come again.
    """

    graph: Any
    rows: Tensor
    kind: str = ""
    moved: "Moved | None" = None

    def to(self, device: torch.device) -> "GraphInputs":
        """Return the same on a device."""
        places = self.moved
        if places is None or places.graph is not self.graph:
            places = Moved(self.graph)
        return replace(self, graph=places.to(device), rows=to_device(self.rows, device))

    def call(self, model: nn.Module) -> Any:
        """Return the outputs of ``model`` that have labels, (rows, ...).

        Example:
            ``for inputs, y in data.batches(0, 0, 10): loss = F.cross_entropy(inputs.call(model), y)``
        """
        output = call_on_graph(model, self.graph)
        if isinstance(output, Mapping):
            output = output[self.kind or next(iter(output))]
        elif isinstance(output, tuple | list):
            output = output[0]
        return output[self.rows]


class Moved:
    """A graph, and its copies on devices, each made once."""

    def __init__(self, graph: Any) -> None:
        self.graph, self._on = graph, dict[torch.device, Any]()

    def to(self, device: torch.device) -> Any:
        """Return the graph on a device."""
        if device not in self._on:
            self._on[device] = map_graph(partial(to_device, device=device), self.graph)
        return self._on[device]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``."""
    # The host need not wait until a copy has arrived on a device; it reads one from a device at once.
    return tensor.to(device, non_blocking=device.type != "cpu")


def is_graph(value: object) -> bool:
    """Tell whether ``value`` is ``Data``, ``HeteroData`` or ``Batch`` of PyTorch Geometric, which is not imported."""
    return hasattr(value, "stores") and hasattr(value, "edge_stores")


def tensors_of_graph(graph: Any) -> Iterator[Any]:
    """Yield what a graph has by name, of all types of nodes and edges."""
    for store in graph.stores:
        yield from store.values()


def map_graph(fn: Callable[[Tensor], Tensor], graph: Any) -> Any:
    """Return a graph with ``fn`` applied to each of its tensors."""
    return copy.copy(graph).apply(fn)


def call_on_graph(model: nn.Module, graph: Any) -> Any:
    """Return ``model(graph)``, or call it with what its forward names and the graph has (``x, edge_index, batch``).

    Raises:
        ValueError: the graph lacks what the forward needs.
    """
    parameters = _parameters(model)
    named = {name: value for name in parameters if (value := _attribute(graph, name)) is not None}
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if len(needed) == 1 and (needed[0] not in named or needed[0] in ("data", "batch", "graph")):
        return model(graph)
    if missing := [name for name in needed if name not in named]:
        keys = sorted({str(key) for store in graph.stores for key in store})
        raise ValueError(f"graph: no '{missing[0]}', which the model's forward needs; it has {', '.join(keys)}")
    return model(**named)


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the parameters that the forward names: of what is inside of a module that hands all arguments on."""
    found: dict[str, inspect.Parameter] = {}
    for module in model.modules():
        own = list(inspect.signature(type(module).forward).parameters.values())[1:]
        found = {p.name: p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if found and next(module.parameters(), None) is not None:  # the place of a missing block has none
            break
    return found


def _attribute(graph: Any, name: str) -> Any:
    """Return a tensor, or a dict of them by type, that a graph has under ``name``; else None."""
    for key in (name, f"{name}_dict"):  # ``to_hetero`` keeps the names of the homogeneous model
        try:
            value = getattr(graph, key)
        except (AttributeError, KeyError):
            continue
        if isinstance(value, Tensor | Mapping) or type(value).__name__ == "SparseTensor":
            return value
    return None
