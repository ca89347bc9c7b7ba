"""The meaning of a subnet, slow and obvious: the full model without the connections to units that it does not have."""

import copy

import torch
from torch import Tensor, nn

from skerry.model.tensors import named_tensors
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import Skipped


@torch.no_grad()
def masked(model: nn.Module, plan: Plan, units: Tensor) -> nn.Module:
    """Return a full-size copy of ``model`` in which weights that read other units than ``units`` are zero.

    Blocks that are not among ``units`` are the identity. Use it in tests: ``extract(model, plan, units)`` computes the
    same outputs and, of the elements that it has, the same gradients.

    Args:
        model: the full model.
        plan: its plan.
        units: int64, (number of units,): global ids of the subnet's units.
    """
    reference, cuts = copy.deepcopy(model), Cuts(plan, units)
    for block, unit in plan.blocks.items():
        if not cuts.held[unit]:
            reference.set_submodule(block, Skipped())
    for name, tensor in named_tensors(reference).items():
        for dim, dealt in enumerate(plan.dims.get(name, ())):
            if dealt is not None and dealt.role == "in":
                tensor.index_fill_(dim, (~cuts.mask(dealt)).nonzero().flatten().to(tensor.device), 0)
    return reference
