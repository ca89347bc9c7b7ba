"""What a model is called with and returns: tensors, alone or in tuples, lists, dicts, dataclasses and graphs."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.model.graph_inputs import GraphInputs, call_on_graph, is_graph, map_graph, tensors_of_graph, to_device

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | GraphInputs
"""One argument, several positional ones, keyword arguments, or a graph: the forward's names say what of it."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Return ``model(x)``, ``model(*xs)`` or ``model(**by_name)``, depending on the type of ``inputs``."""
    if isinstance(inputs, GraphInputs):
        return inputs.call(model)
    if is_graph(inputs):
        return call_on_graph(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return ``value`` with ``fn`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return fn(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # before dicts: ModelOutput is both
        return dataclasses.replace(
            value, **{f.name: map_tensors(fn, getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    if isinstance(value, Mapping):
        return {key: map_tensors(fn, item) for key, item in value.items()}
    if is_graph(value):
        return map_graph(fn, value)
    if isinstance(value, tuple | list):
        items = [map_tensors(fn, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def take(value: Any, samples: slice | Tensor) -> Any:
    """Return some samples of ``value``: rows of its tensors; of a graph, some of the outputs that have labels."""
    if isinstance(value, GraphInputs):
        return dataclasses.replace(value, rows=take(value.rows, samples))
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(take(item, samples) for item in value)
    return map_tensors(lambda t: t[samples if isinstance(samples, slice) else samples.to(t.device)], value)


def num_rows(value: Any) -> set[int]:
    """Return the sizes of the first dims of the tensors in ``value``: one, the number of samples, where they fit."""
    if isinstance(value, GraphInputs):
        return {len(value.rows)}
    if isinstance(value, tuple | list):
        return set().union(*map(num_rows, value))
    return {len(tensor) if tensor.dim() else 0 for tensor in tensors_of(value)}


def join(values: Sequence[Any]) -> Any:
    """Return ``values``, of the same structure (``fit``), as one: tensors are concatenated along their first dim.

    Anything that is not a tensor is taken from the first value.
    """
    if len(values) == 1:
        return values[0]
    others = [tensors_of(value) for value in values]
    return map_tensors(lambda _: torch.cat([next(tensors) for tensors in others]), values[0])


def fit(values: Sequence[Any]) -> bool:
    """Tell whether ``values`` can be joined: the same structure, and samples of the same shapes in all tensors."""
    if any(isinstance(value, GraphInputs) or len(num_rows(value)) > 1 for value in values):
        return False  # graphs: nodes and edges
    if any(tensor.layout != torch.strided for value in values for tensor in tensors_of(value)):
        return False
    return len({(_names(value), *(tensor.shape[1:] for tensor in tensors_of(value))) for value in values}) == 1


def _names(value: Any) -> tuple[Any, ...]:
    """Return the keys of ``value`` and of the values in it, in order."""
    if isinstance(value, Mapping):
        return tuple((key, _names(item)) for key, item in value.items())
    return tuple(_names(item) for item in value) if isinstance(value, tuple | list) else ()


def to(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor on ``device``."""
    if isinstance(value, GraphInputs):
        return value.to(device)
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(to(item, device) for item in value)
    return map_tensors(partial(to_device, device=device), value)


def stored(tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors of which a tensor consists: itself, or of a sparse one its values and indices."""
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    indices = (tensor.crow_indices, tensor.col_indices) if by_row else (tensor.ccol_indices, tensor.row_indices)
    return [tensor.values(), *(find() for find in indices)]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in ``value``, in tuples, dicts, dataclasses and graphs; other objects (caches) are ignored."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif is_graph(value):
        for item in tensors_of_graph(value):
            yield from tensors_of(item)
