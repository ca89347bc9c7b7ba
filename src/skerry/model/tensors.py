"""A module's parameters and buffers: listed by name, replaced, or moved to meta (a skeleton)."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from skerry.model.in_words import first_line


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter, then every dense buffer, by dotted name; a tied tensor once, under its first name."""
    return {**{n: p.detach() for n, p in model.named_parameters()}, **dict(dense_buffers(model))}


def dense_buffers(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield buffers by dotted name, but no sparse ones: these are constants, and are copied with their modules."""
    named = model.named_buffers(remove_duplicate=remove_duplicate)
    return ((name, buffer) for name, buffer in named if buffer.layout == torch.strided)


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are not trained; nothing may change them."""
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every parameter and buffer, by dotted name."""
    return {name: tensor.shape for name, tensor in named_tensors(model).items()}


def saved_names(model: nn.Module, name: str) -> list[str]:
    """Return all names of the tensor ``name`` in ``model.state_dict()``; empty if it is not saved."""
    tensors = model.state_dict(keep_vars=True)
    own = dict([*model.named_parameters(), *model.named_buffers()])[name]
    return [other for other, tensor in tensors.items() if tensor is own]


def tensors_by_names(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return each parameter and buffer once, with all its names; a tied tensor has several."""
    known: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *dense_buffers(model, remove_duplicate=False),
    ]:
        known.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(known.values())


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Map each name of a tensor to the first name of the same tensor."""
    return {name: names[0] for names, _ in tensors_by_names(model) for name in names}


def fill_(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Replace the parameters and buffers of ``module`` by ``tensors``, by name; tied ones stay tied.

    Args:
        module: is changed in place.
        tensors: one for each name in ``named_tensors(module)``.

    Returns:
        ``module``.
    """
    new: dict[int, Tensor] = {}
    for name, parameter in module.named_parameters():
        new[id(parameter)] = parameter_like(tensors[name], parameter)
    for name, buffer in dense_buffers(module):
        new[id(buffer)] = tensors[name]
    for each in module.modules():
        for own, tensor in [*each._parameters.items(), *each._buffers.items()]:
            if tensor is not None and id(tensor) in new:
                setattr(each, own, new[id(tensor)])  # by setattr: nn.LSTM has a second list of its weights
    return module


def parameter_like(tensor: Tensor, like: nn.Parameter) -> nn.Parameter:
    """Return ``tensor`` as a parameter with the ``requires_grad`` and the attributes of ``like``."""
    new = nn.Parameter(tensor, requires_grad=like.requires_grad)
    new.__dict__.update(vars(like))
    return new


def copied(
    model: nn.Module, memo: dict[int, Any] | None = None, copy_: Callable[..., Any] = copy.deepcopy
) -> nn.Module:
    """Return ``copy_(model, memo)``. Tensors of past gradients that a forward has kept somewhere are detached.

    Raises:
        ValueError: the model cannot be copied.
    """
    values = [value for module in model.modules() for value in vars(module).values()]
    values = tree_leaves([v for v in values if isinstance(v, Tensor) or (isinstance(v, list | dict) and v)])
    kept = {id(t): t.detach() for t in values if isinstance(t, Tensor) and t.grad_fn is not None}
    try:
        new: nn.Module = copy_(model, {**kept, **(memo or {})})
    except Exception as error:  # locks, generators, ...
        said = first_line(error).partition(". ")[0]
        what_to_do = "keep what cannot be copied outside of its modules"
        raise ValueError(f"the model cannot be copied ({said}); {what_to_do}") from error
    return new


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with every parameter and buffer on meta; tied ones stay tied. No values are copied.

    Raises:
        ValueError: the model cannot be copied.

    Example:
        >>> skeleton(nn.Linear(4, 3)).weight
        Parameter containing:
        tensor(..., device='meta', size=(3, 4), requires_grad=True)
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = parameter_like(torch.empty_like(parameter.detach(), device="meta"), parameter)
    for _, buffer in dense_buffers(model):
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copied(model, memo)
