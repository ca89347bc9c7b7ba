"""The private gradient of a step: each sample's own gradient clipped, their sum with noise.

Each sample runs through the net alone, so its gradient cannot depend on another sample, whatever the modules and the
loss are. Hooks that compute gradients of samples from a batch rely on that (Opacus' ``GradSampleModule``).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from skerry.model.inputs import call, map_tensors, num_rows
from skerry.privacy.noise import Noise
from skerry.randomness import own_random_state

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
    linear = _called_on_rows(net, loss_fn, batch)
    at_outputs = {name: trained[f"{name}.weight"].new_zeros(module.out_features) for name, module in linear.items()}
    others = {name: value for name, value in trained.items() if name.rpartition(".")[0] not in linear}

    def loss_of_one(values: dict[str, Tensor], added: dict[str, Tensor], sample: Any) -> tuple[Tensor, Any]:
        inputs, label = map_tensors(lambda t: t[None], sample)
        with _adding(linear, added) as entered:
            return loss_fn(functional_call(caller, {**fixed, **values}, (inputs,)), label), entered

    caller = _Caller(net)
    fixed = {f"net.{name}": value for name, value in trained.items() if name not in others}
    of_others = {f"net.{name}": value for name, value in others.items()}
    each = vmap(grad(loss_of_one, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0), randomness="different")
    (gradients, left), entered = each(of_others, at_outputs, batch)
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
    for name, module in linear.items():  # of an outer product, and of the bias
        of_inputs = entered[name].square().sum(1) + (0 if module.bias is None else 1)
        squares.append(left[name].square().sum(1) * of_inputs)
    norms = torch.stack(squares).sum(0).sqrt()
    factors = (max_grad_norm / norms).clamp(max=1.0).where(norms.isfinite(), 0.0)
    found = {name.removeprefix("net."): torch.tensordot(factors, _finite(g), 1) for name, g in gradients.items()}
    for name, module in linear.items():
        scaled = factors[:, None] * _finite(left[name])
        found[f"{name}.weight"] = scaled.T @ _finite(entered[name])
        if module.bias is not None:
            found[f"{name}.bias"] = scaled.sum(0)
    return found


def _finite(values: Tensor) -> Tensor:
    """Return ``values`` with zeros for rows that count as zero: NaN times zero is NaN."""
    return values if bool(values.isfinite().all()) else values.nan_to_num(0.0, 0.0, 0.0)


def _called_on_rows(net: nn.Module, loss_fn: LossFn, batch: Any) -> dict[str, nn.Linear]:
    """Return the linear modules of ``net`` that see one row of each sample, once, and nothing else reads, by name.

    The gradient of a sample is then the outer product of what leaves and what enters, which need not be formed.
    """
    owners = Counter(id(p) for _, p in net.named_parameters(remove_duplicate=False))
    linear = {
        name: module
        for name, module in net.named_modules()
        if type(module) is nn.Linear
        and "weight" in module._parameters  # not where it is computed from others
        and all(p.requires_grad and owners[id(p)] == 1 for p in module.parameters())
        and not (module._forward_hooks or "forward" in vars(module))  # which may change its output
    }
    rows: dict[str, list[int]] = {name: [] for name in linear}

    def hook(module: nn.Linear, name: str, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        rows[name].append(output.numel() // module.out_features)
        # The same, but the loss now depends on the module's parameters only if something else reads them.
        bias = None if module.bias is None else module.bias.detach()
        return nn.functional.linear(inputs[0], module.weight.detach(), bias)

    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: hook(m, name, x, y)) for name, module in linear.items()
    ]
    with torch.enable_grad(), own_random_state():
        inputs, label = map_tensors(lambda t: t[:1], batch)
        loss = loss_fn(call(net, inputs), label)
    for handle in handles:
        handle.remove()
    read = _reached(loss, [p for module in linear.values() for p in module.parameters()])
    return {
        name: module
        for name, module in linear.items()
        if rows[name] == [1] and not any(id(p) in read for p in module.parameters())
    }


def _reached(loss: Tensor, parameters: list[nn.Parameter]) -> set[int]:
    """Return the ids of the ``parameters`` that ``loss`` was computed from."""
    if not (loss.requires_grad and parameters):
        return set()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {id(p) for p, value in zip(parameters, found, strict=True) if value is not None}


@contextmanager
def _adding(linear: Mapping[str, nn.Linear], added: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Add something to the outputs of linear modules; yields what has entered them, by name, after their forward."""
    entered: dict[str, Tensor] = {}

    def hook(name: str, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        entered[name] = inputs[0].detach().flatten()
        return output + added[name]

    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: hook(name, x, y)) for name, module in linear.items()
    ]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


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
