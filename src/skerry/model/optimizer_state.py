"""Optimizer state as named tensors, so that momenta are cut, moved and averaged by the same table as weights.

The state ``momentum_buffer`` of the parameter ``layers.0.weight`` is called ``layers.0.weight::momentum_buffer``.
State of another shape than its parameter (Adam's step count) belongs to no unit and is shared. So an element that
rested for long and is trained again has young moments under an old step count: Adam's bias correction does not cover
it, and its first steps are too large, (1 - beta1^k) / sqrt(1 - beta2^k) times after k of them: at most 6.6 with
PyTorch's betas.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

SEPARATOR = "::"


def parameter_of(name: str) -> str:
    """Return the tensor whose table row ``name`` follows: itself, or the parameter it is the state of."""
    return name.partition(SEPARATOR)[0]


def initial(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return, by key, the state of an element that has seen nothing but zero gradients; empty if it cannot be known.

    This is where state starts: 0 for momenta, ``initial_accumulator_value`` for Adagrad, the learning rate for Rprop.
    """
    element = nn.Parameter(torch.zeros(1))
    element.grad = torch.zeros(1)
    optimizer = make([element])
    try:
        optimizer.step()
    except (RuntimeError, ValueError, TypeError):  # Muon wants matrices
        return {}
    state = {k: torch.as_tensor(v) for k, v in optimizer.state.get(element, {}).items() if v is not None}
    # A count of steps starts at none.
    return {key: torch.zeros_like(value) if value.dim() == 0 else value for key, value in state.items()}


def read(optimizer: torch.optim.Optimizer, model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every state tensor of ``optimizer`` by name (no copies).

    A parameter that has had no gradient yet gets the state ``start`` (of ``initial``), so that all workers have the
    same names, whatever path their data took through the model.

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
        if parameter.requires_grad and not optimizer.state.get(parameter):
            for key, value in start.items():
                state[f"{name}{SEPARATOR}{key}"] = (
                    value.to(parameter.device).reshape(()).expand(parameter.shape if value.dim() else ()).clone()
                )
    return state


def load_(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give ``optimizer`` the state that ``read`` returned, in the shapes of ``model``."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        owner, _, key = name.partition(SEPARATOR)
        optimizer.state[parameters[owner]][key] = value


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; step counts (no dims) stay where optimizers want them."""
    return tensor.to(device) if tensor.dim() else tensor


def full_sizes(
    narrow: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return, by name, full-size tensors on the meta device for the optimizer state in a worker's ``narrow`` tensors.

    Args:
        narrow: a worker's tensors, parameters and optimizer state.
        shapes: of the full model's tensors.
        parameters: others that have the same state, though this worker may not have them (those of blocks).
    """
    sizes: dict[str, Tensor] = {}
    absent = {name: parameter.dtype for name, parameter in parameters.items() if name not in narrow}
    for name, tensor in narrow.items():
        owner, _, key = name.partition(SEPARATOR)
        if key:
            own_shape = tensor.shape == narrow[owner].shape
            sizes[name] = torch.empty(shapes[owner] if own_shape else tensor.shape, dtype=tensor.dtype, device="meta")
            if narrow[owner].dim() == 0:
                continue  # it cannot be told whether a parameter with dims would have one number, or one an element
            for other, dtype in absent.items():
                shape = shapes[other] if own_shape else tensor.shape
                own = dtype if tensor.dtype == narrow[owner].dtype else tensor.dtype
                sizes.setdefault(f"{other}{SEPARATOR}{key}", torch.empty(shape, dtype=own, device="meta"))
    return dict(sorted(sizes.items()))


def blank(
    name: str, shape: torch.Size, dtype: torch.dtype, start: Mapping[str, Tensor], device: torch.device
) -> Tensor:
    """Return the state ``name`` of elements that nobody has trained yet; ``start`` is what ``initial`` returns."""
    tensor = torch.zeros(shape, dtype=dtype, device=device)
    at_start = start.get(name.rpartition(SEPARATOR)[2])
    return tensor if at_start is None else tensor + at_start.to(tensor).view(())
