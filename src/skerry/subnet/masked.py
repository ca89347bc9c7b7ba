"""The meaning of a subnet, slow and obvious: the full model without the connections to units that it does not have."""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from skerry.model.tensors import copied, named_tensors
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import Skipped


@torch.no_grad()
def masked(model: nn.Module, plan: Plan, units: Tensor) -> nn.Module:
    """Return a full-size copy of ``model`` in which weights that read other units than ``units`` are zero.

    Blocks that are not among ``units`` are the identity, and experts that are not are never chosen. Use it in tests:
    ``extract(model, plan, units)`` computes the same outputs and, of the elements that it has, the same gradients.

    Args:
        model: the full model.
        plan: its plan.
        units: int64, (number of units,): global ids of the subnet's units.
    """
    reference, cuts = copied(model), Cuts(plan, units)
    experts = torch.zeros(plan.num_units + 1, dtype=torch.bool)
    for axis in plan.axes:
        experts[axis.units] = axis.kind == "experts"
    for block, unit in plan.blocks.items():
        if not cuts.held[unit] and not experts[unit]:
            reference.set_submodule(block, Skipped())
    unheld: dict[str, Tensor] = {}
    for name, tensor in named_tensors(reference).items():
        for dim, dealt in enumerate(plan.dims.get(name, ())):
            if dealt is not None and dealt.role == "in":
                tensor.index_fill_(dim, (~cuts.mask(dealt)).nonzero().flatten().to(tensor.device), 0)
            elif dealt is not None and bool(experts[dealt.units].any()):
                unheld[name] = ~cuts.mask(dealt)
    if unheld:
        reference.unheld_experts = unheld  # type: ignore[assignment]
        reference.forward = types.MethodType(_forward, reference)
    return reference


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
    with _NeverChosen((tensors[name], mask) for name, mask in self.unheld_experts.items()):
        return type(self).forward(self, *args, **kwargs)


class _NeverChosen(TorchFunctionMode):
    """Makes what a router computes from its weights (an index an expert, along the last dim) -inf for some experts."""

    def __init__(self, masks: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.masks = {id(weight): (weight, mask) for weight, mask in masks}  # keeps the tensors: ids stay theirs

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        masks = [self.masks[id(t)][1] for t in tensors if id(t) in self.masks]
        if not masks or not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        if len(masks) == len(tensors):  # of weights alone: cast, transposed
            self.masks.setdefault(id(out), (out, masks[0]))
        elif out.dim() and out.shape[-1] == len(masks[0]):
            return out.masked_fill(masks[0].to(out.device), -torch.inf)
        return out
