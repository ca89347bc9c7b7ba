"""The optimizer of a worker, made by the function that a training is given; and what is known of it beforehand."""

import torch
from torch import Tensor, nn

from skerry.model import optimizer_state
from skerry.model.in_words import first_line
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.subnet.side_by_side import nets_of
from skerry.training.worker import OptimizerFn


def optimizer_of(make: OptimizerFn, subnet: nn.Module) -> torch.optim.Optimizer:
    """Return what ``make`` returns for a subnet; of nets side by side a worker has one, and ``make`` gets that.

    Raises:
        ValueError: ``make`` takes the subnet for something else, such as its parameters, or torch refuses what it does.
    """
    nets = [*nets_of(subnet).values()]
    try:
        return make(nets[0] if len(nets) == 1 else subnet)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"optimizer: {first_line(error)}; the function gets the worker's subnet, so write "
            "lambda net: torch.optim.SGD(net.parameters(), lr=0.1)"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"optimizer: {first_line(error)}; expected one of the subnet's parameters, with settings in range"
        ) from error


def small_copy(model: nn.Module) -> nn.Module:
    """Return ``model`` with at most two elements a dim, all zero, to try an optimizer on: some allocate at once."""

    def small(tensor: Tensor) -> Tensor:
        device = "cpu" if tensor.is_meta else tensor.device
        return torch.zeros([min(2, n) for n in tensor.shape], dtype=tensor.dtype, device=device)

    return fill_(skeleton(model), {name: small(tensor) for name, tensor in named_tensors(model).items()})


def initial_state(make: OptimizerFn, model: nn.Module) -> dict[str, Tensor]:
    """Return, by name, the values that optimizer state of ``model`` starts with (``optimizer_state.initial``)."""
    start: dict[str, Tensor] = {}
    for prefix, net in nets_of(small_copy(model)).items():
        own = optimizer_state.initial(optimizer_of(make, net), net)
        start |= {f"{prefix}{name}": value for name, value in own.items()}
    return start
