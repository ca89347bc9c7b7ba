"""Optimizer state as named tensors, so that momenta are cut, moved and averaged by the same table as weights.

The state ``momentum_buffer`` of the parameter ``layers.0.weight`` is called ``layers.0.weight::momentum_buffer``.
State of another shape than its parameter (Adam's step count) belongs to no unit and is shared.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

SEPARATOR = "::"


def parameter_of(name: str) -> str:
    """Return the tensor whose table row ``name`` follows: itself, or the parameter it is the state of."""
    return name.partition(SEPARATOR)[0]


def read(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return every state tensor of ``optimizer`` by name (no copies).

    Raises:
        ValueError: the optimizer keeps state that is not a tensor or a number, which cannot travel.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            if not isinstance(value, Tensor | float | int):
                raise ValueError(
                    f"{type(optimizer).__name__} keeps '{key}' of {name} as {type(value).__name__}, expected a tensor "
                    "or a number; use optimizer_state='reset'"
                )
            state[f"{name}{SEPARATOR}{key}"] = torch.as_tensor(value)
    return state


def load_(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give ``optimizer`` the state that ``read`` returned, in the shapes of ``model``."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        owner, _, key = name.partition(SEPARATOR)
        optimizer.state[parameters[owner]][key] = value
