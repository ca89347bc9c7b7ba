"""Numbers that a module keeps beside its tensors, such as a number of heads: find them, and scale them in a subnet."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_DEPTH = 3


def kept_numbers(module: nn.Module) -> dict[str, int]:
    """Return the whole numbers above 1 that ``module`` keeps in attributes, tuples, dicts and plain objects, by path.

    Example:
        >>> kept_numbers(nn.Unflatten(1, (4, 6)))
        {'unflattened_size.0': 4, 'unflattened_size.1': 6}
    """
    return {path: number for path, number in _numbers(vars(module), _DEPTH) if not path.startswith("_modules.")}


def _numbers(value: Any, depth: int) -> Iterator[tuple[str, int]]:
    for key, item in _items(value):
        if type(item) is int and item > 1:
            yield f"{key}", item
        elif depth:
            yield from ((f"{key}.{path}", number) for path, number in _numbers(item, depth - 1))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif not isinstance(value, nn.Module | Tensor | type) and not callable(value):
        yield from getattr(value, "__dict__", {}).items()


def scale_number_(narrow: nn.Module, full: nn.Module, path: str, held: int, total: int) -> None:
    """Set the number of ``narrow`` at ``path`` to that of ``full`` times ``held`` / ``total``; nothing else changes."""
    first, *rest = path.split(".")
    number: Any = full
    for key in (first, *rest):
        number = next(item for name, item in _items(vars(number) if number is full else number) if f"{name}" == key)
    setattr(narrow, first, _put(getattr(narrow, first), rest, number * held // total))


def _put(value: Any, path: list[str], number: int) -> Any:
    """Return a copy of ``value`` with ``number`` at ``path``: others may use the same object."""
    if not path:
        return number
    first, *rest = path
    if isinstance(value, tuple | list):
        items = [_put(item, rest, number) if f"{k}" == first else item for k, item in enumerate(value)]
        return type(value)(items)
    changed = copy.copy(value)
    if isinstance(value, dict):
        changed.update({key: _put(item, rest, number) for key, item in value.items() if f"{key}" == first})
    else:
        setattr(changed, first, _put(getattr(value, first), rest, number))
    return changed
