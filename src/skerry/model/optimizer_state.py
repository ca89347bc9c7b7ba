"""Optimizer state as named tensors, so that momenta are extracted, exchanged and averaged like weights.

The state ``momentum_buffer`` of the parameter ``layers.0.weight`` is called ``layers.0.weight::momentum_buffer``.
State of another shape than its parameter (Adam's step count) belongs to no unit and is shared. So an element that is
trained again after many rounds has new moments with an old step count, which Adam's bias correction does not cover. Its
first steps are too large by (1 - beta1^k) / sqrt(1 - beta2^k) after k steps: at most 6.6 with PyTorch's betas.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

SEPARATOR = "::"


def parameter_of(name: str) -> str:
    """Return the name of the parameter that ``name`` is the state of; ``name`` itself if it is no state."""
    return name.partition(SEPARATOR)[0]


def initial(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return, by name, the values that optimizer state starts with; empty if they are not known.

    They are those of elements that have only had zero gradients: 0 for momenta, ``initial_accumulator_value`` for
    Adagrad, the learning rate for Rprop. A value per element has one dim, and a step count none.

    Args:
        optimizer: of the parameters of ``model``, in which it takes a step.
        model: with the names of the model that is trained, and with two elements a dim.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, ValueError, TypeError):
        return {}
    start: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(0.0 if value is None else value)
            if value is not None and (tensor.dim() == 0 or tensor.shape == parameter.shape):
                count = tensor.dim() == 0 and (parameter.dim() > 0 or key == "step")
                start[f"{name}{SEPARATOR}{key}"] = torch.zeros_like(tensor) if count else tensor.flatten()[:1]
    return start


def read(optimizer: torch.optim.Optimizer, model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every state tensor of ``optimizer`` by name, without copies.

    Args:
        optimizer: of the parameters of ``model``.
        model: a worker's subnet.
        start: what ``initial`` returned. A parameter without a gradient so far has this state, so that all workers
            have the same names, whichever path their data took through the model.

    Raises:
        ValueError: the optimizer has state that is not a tensor or a number, which cannot travel.
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
                if parameter_of(key) == name:
                    shape = parameter.shape if value.dim() else ()
                    state[key] = value.to(parameter.device).reshape(()).expand(shape).clone()
    return state


def load_(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give ``optimizer`` the state that ``read`` returned, in the shapes of ``model``, in place."""
    parameters = dict(model.named_parameters())
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, value in state.items():
        owner, _, key = name.partition(SEPARATOR)
        parameter = parameters[owner]
        group = groups.get(id(parameter), {})
        if group.get("fused") or group.get("capturable"):  # these count steps on the device
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def placed(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the named tensors on ``device``, but optimizers' step counts (no dims) on the CPU."""
    return {name: tensor.to(place_of(name, tensor.shape, device)) for name, tensor in tensors.items()}


def place_of(name: str, shape: torch.Size, device: torch.device) -> torch.device:
    """Return where the tensor ``name`` of a subnet on ``device`` is: step counts (no dims) are on the CPU."""
    return device if shape or parameter_of(name) == name else torch.device("cpu")


def full_sizes(
    narrow: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    parameters: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return, by name, full-size tensors on the meta device for the optimizer state in a worker's ``narrow`` tensors.

    Args:
        narrow: a worker's parameters and optimizer state.
        shapes: of the full model's tensors.
        parameters: others that have state, though this worker may lack them (those of blocks).
        start: what ``initial`` returned: the state that they have; if it is empty, the same as others.
    """
    sizes: dict[str, Tensor] = {}
    absent = {name: parameter.dtype for name, parameter in parameters.items() if name not in narrow}
    for name, tensor in narrow.items():
        owner, _, key = name.partition(SEPARATOR)
        if key:
            own_shape = tensor.shape == narrow[owner].shape
            sizes[name] = torch.empty(shapes[owner] if own_shape else tensor.shape, dtype=tensor.dtype, device="meta")
            if narrow[owner].dim() == 0:
                continue  # unknown: would a parameter with dims have one number, or one per element?
            for other, dtype in absent.items():
                if start and f"{other}{SEPARATOR}{key}" not in start:
                    continue
                shape = shapes[other] if own_shape else tensor.shape
                own = dtype if tensor.dtype == narrow[owner].dtype else tensor.dtype
                sizes.setdefault(f"{other}{SEPARATOR}{key}", torch.empty(shape, dtype=own, device="meta"))
    return dict(sorted(sizes.items()))


def blank(
    name: str, shape: torch.Size, dtype: torch.dtype, start: Mapping[str, Tensor], device: torch.device
) -> Tensor:
    """Return the state ``name`` of elements that have not been trained yet; ``start`` is what ``initial`` returned."""
    tensor = torch.zeros(shape, dtype=dtype, device=place_of(name, shape, device))
    at_start = start.get(name)
    return tensor if at_start is None else tensor + at_start.to(tensor).view(())
