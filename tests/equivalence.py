"""Assertions for any plan: narrow == masked full model in outputs, gradients, statistics; write-back is exact."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from skerry import Plan
from skerry.discovery.forward_contexts import same_draws
from skerry.model.inputs import Inputs, call, map_tensors, tensors_of
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint
from skerry.randomness import own_random_state
from skerry.subnet import extract, masked, write_back
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import take


def doubled(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The model and inputs in float64, without dropout, with weights and statistics far from trivial values."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std(correction=0).clamp(min=0.1))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    for module in model.modules():
        for name, value in vars(module).items():
            if (isinstance(module, nn.Dropout) and name == "p") or ("dropout" in name and isinstance(value, float)):
                setattr(module, name, 0.0)
    return model, map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)


def assert_narrow_equals_masked(
    model: nn.Module, plan: Plan, inputs: Inputs, units: Tensor, *, training: bool = False, tolerance: float = 1e-9
) -> None:
    """Outputs, gradients and statistics of the subnet of ``units`` are those of the masked full model."""
    model.train(training)
    narrow, full = extract(model, plan, units), masked(model, plan, units)
    a: list[Tensor] = []
    b: list[Tensor] = []
    for net, outputs in ((narrow, a), (full, b)):
        with own_random_state(0), same_draws():
            outputs.extend(tensors_of(call(net, inputs)))
    assert len(a) == len(b)
    for got, expected in zip(a, b, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    _weighted(a).backward()
    _weighted(b).backward()
    held = Cuts(plan, units)
    wide = dict(full.named_parameters())
    for name, parameter in narrow.named_parameters():
        cut = held.of(name)
        assert cut is not None
        if parameter.grad is None:
            assert wide[name].grad is None, name
        else:
            expected = take(wide[name].grad, cut)
            torch.testing.assert_close(
                parameter.grad, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
    if training:
        statistics = named_tensors(full)
        for name, buffer in narrow.named_buffers():
            if buffer.layout != torch.strided:
                continue
            expected = take(statistics[name], held.of(name))
            torch.testing.assert_close(buffer, expected, rtol=tolerance, atol=tolerance)


def assert_write_back_is_exact(model: nn.Module, plan: Plan, units: Tensor) -> None:
    """Extract and write back keeps every bit; changes of a subnet are written, everything else keeps its bits."""
    before = bits(model)
    subnet = extract(model, plan, units)
    write_back(model, plan, units, subnet)
    assert same_bits(before, bits(model))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in named_tensors(subnet).values():
            tensor.fill_(7)
    write_back(changed, plan, units, subnet)
    held = torch.zeros(plan.num_units + 1, dtype=torch.bool)
    held[units] = True
    held[-1] = True
    for name, tensor in named_tensors(changed).items():
        mine = torch.full(tensor.shape, plan.block_of(name) is None or bool(held[plan.block_of(name)]))
        for d, dealt in enumerate(plan.dims.get(name, ())):
            if dealt is not None:
                mine &= held[dealt.units].view([-1 if k == d else 1 for k in range(tensor.dim())])
        assert (tensor[mine] == 7).all(), name
        assert torch.equal(_raw(tensor[~mine]), _raw(before[name][~mine])), name


def dealt_to(plan: Plan, workers: int, seed: int = 0) -> list[Tensor]:
    """Each worker's units when all axes are dealt to ``workers``."""
    assignment = Disjoint(workers, seed=seed).assign(plan.axes, 0)
    return [assignment.units(worker) for worker in range(workers)]


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor."""
    return {name: tensor.clone() for name, tensor in named_tensors(model).items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal to the bit (-0.0 is not 0.0)."""
    return a.keys() == b.keys() and all(torch.equal(_raw(a[n]), _raw(b[n])) for n in a)


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _weighted(outputs: list[Tensor]) -> Any:
    return sum(
        (t.square() * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum()
        for t in outputs
        if t.is_floating_point()
    )
