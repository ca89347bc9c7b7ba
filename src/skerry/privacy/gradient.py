"""The private gradient of a step: each sample's own gradient clipped, their sum with noise.

Each sample runs through the net alone, so its gradient cannot depend on another sample, whatever the modules and the
loss are. Hooks that compute gradients of samples from a batch rely on that (Opacus' ``GradSampleModule``).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from skerry.model.inputs import call, map_tensors, num_rows
from skerry.privacy.noise import Noise

LossFn = Callable[[Any, Any], Tensor]


def clipped_sum(net: nn.Module, loss_fn: LossFn, batch: Any, max_grad_norm: float) -> dict[str, Tensor]:
    """Return the sum over a batch of each sample's gradient, scaled to a norm of at most ``max_grad_norm``, by name.

    A sample whose gradient is not finite counts as zero.

    Args:
        net: in the mode to train in.
        loss_fn: ``loss_fn(output, labels)``; it is called with one sample at a time.
        batch: (inputs, labels) of at least one sample.
        max_grad_norm: of the gradients of all parameters that are trained together.
    """
    trained = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    caller = _Caller(net)

    def loss_of_one(values: dict[str, Tensor], sample: Any) -> Tensor:
        inputs, label = map_tensors(lambda t: t[None], sample)
        return loss_fn(functional_call(caller, {f"net.{n}": v for n, v in values.items()}, (inputs,)), label)

    gradients = vmap(grad(loss_of_one), in_dims=(None, 0), randomness="different")(trained, batch)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    finite = norms.isfinite()
    if not bool(finite.all()):
        gradients = {name: g[finite] for name, g in gradients.items()}
        norms = norms[finite]
    factors = (max_grad_norm / norms).clamp(max=1.0)
    return {name: (factors @ g.flatten(1)).view_as(trained[name]) for name, g in gradients.items()}


class PrivateGradient:
    """Sets the gradients of a net to private ones, step after step.

    Args:
        net: the worker's.
        max_grad_norm: C.
        noise_multiplier: z; the sum of clipped gradients gets normal noise of standard deviation z C.
        batch_size: the expected one, by which the sum is divided.
        noise: where noise comes from.
    """

    def __init__(
        self, net: nn.Module, *, max_grad_norm: float, noise_multiplier: float, batch_size: int, noise: Noise
    ) -> None:
        self._net, self._max_grad_norm, self._noise_multiplier = net, max_grad_norm, noise_multiplier
        self._batch_size, self._noise = batch_size, noise

    def set_(self, loss_fn: LossFn, parts: Iterable[Any]) -> None:
        """Set the gradients to those of one step.

        Args:
            loss_fn: ``loss_fn(output, labels)``.
            parts: of the batch, each (inputs, labels); they may be empty.
        """
        sums = [clipped_sum(self._net, loss_fn, part, self._max_grad_norm) for part in parts if num_rows(part) != {0}]
        for name, parameter in self._net.named_parameters():
            if parameter.requires_grad:
                std = self._noise_multiplier * self._max_grad_norm
                total = std * self._noise(parameter.shape).to(parameter) if std else torch.zeros_like(parameter)
                for part in sums:
                    total += part[name]
                parameter.grad = total / self._batch_size


class _Caller(nn.Module):
    """Calls a net with inputs of any form, as one argument."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Any) -> Any:
        """Return the net's output."""
        return call(self.net, inputs)
