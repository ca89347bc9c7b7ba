"""The meaning of a subnet, slow and obvious: the full model in which nothing reads what the worker does not hold."""

import copy

import torch
from torch import Tensor, nn

from skerry.model.tensors import named_tensors
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import Skipped


@torch.no_grad()
def masked(model: nn.Module, plan: Plan, units: Tensor) -> nn.Module:
    """Return a full-size copy of ``model`` in which nothing reads what a holder of ``units`` does not have.

    The weights that would read it are zero, and blocks that are not held are the identity. For tests:
    ``extract(model, plan, units)`` computes the same outputs and, on what is held, the same gradients.
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
