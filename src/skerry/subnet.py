"""Subnets: cut the narrow module a worker trains out of the full model, and write it back.

A *cut* says, for each dim of a tensor, which indices a worker holds. ``take`` and ``put_`` apply it to one tensor, so
that weights, batch-norm statistics and optimizer state are all sliced by the same table. ``masked`` is the slow,
obvious meaning of a subnet: the full model with what the worker does not hold set to zero.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skerry.optimizer_state import parameter_of
from skerry.plan import DealtDim, Plan, named_tensors

Cut = tuple[Tensor | None, ...]
"""For each dim the sorted int64 indices that are held, None for all; an empty cut is the whole tensor."""


def cuts(plan: Plan, units: Tensor) -> dict[str, Cut]:
    """Return the cut of every dealt tensor for a worker that holds ``units`` (global ids); others are whole."""
    held = torch.zeros(plan.num_units + 1, dtype=torch.bool)
    held[units] = True
    held[-1] = True  # where id -1 looks: what is not dealt out is held by everybody
    known: dict[int, Tensor | None] = {}  # many dims share one tensor of unit ids

    def indices(dim: DealtDim | None) -> Tensor | None:
        if dim is None:
            return None
        if id(dim.units) not in known:
            mine = held[dim.units]
            known[id(dim.units)] = None if bool(mine.all()) else mine.nonzero().flatten()
        return known[id(dim.units)]

    return {name: tuple(indices(dim) for dim in dims) for name, dims in plan.dims.items()}


def take(tensor: Tensor, cut: Cut = ()) -> Tensor:
    """Return a new tensor with the part of ``tensor`` that ``cut`` names."""
    part = tensor
    for dim, index in enumerate(cut):
        if index is not None:
            part = part.index_select(dim, index.to(tensor.device))
    return part.clone() if part is tensor else part


def cut_of(plan: Plan, by_name: Mapping[str, Cut], name: str, shape: torch.Size) -> Cut:
    """Return the cut of a full-size tensor: its own, or that of the parameter whose optimizer state it is."""
    return by_name.get(parameter_of(name), ()) if plan.row(name, shape) else ()


def put_(tensor: Tensor, part: Tensor, cut: Cut = ()) -> None:
    """Write ``part`` into the place in ``tensor`` that ``cut`` names; everything else keeps its bits."""
    dealt = [dim for dim, index in enumerate(cut) if index is not None]
    if not dealt:
        tensor.copy_(part)
        return
    dim = dealt[0]
    index = cut[dim]
    assert index is not None
    index = index.to(tensor.device)
    if len(dealt) > 1:
        slab = tensor.index_select(dim, index)
        put_(slab, part, tuple(None if d == dim else i for d, i in enumerate(cut)))
        part = slab
    tensor.index_copy_(dim, index, part)


def cut_shape(shape: torch.Size, cut: Cut = ()) -> torch.Size:
    """Return the shape of what ``take`` returns for a tensor of ``shape``."""
    held = [*cut] + [None] * (len(shape) - len(cut))
    return torch.Size(size if index is None else len(index) for size, index in zip(shape, held, strict=True))


@torch.no_grad()
def extract(model: nn.Module, plan: Plan, units: Tensor) -> nn.Module:
    """Return the subnet of ``units``: a real, small, dense module of the same class as ``model``.

    Its tensors are new; ``model`` is not changed. Tied tensors stay tied, and no full-size tensor is copied on the way.
    """
    by_name = cuts(plan, units)
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        part = take(parameter.detach(), by_name.get(name, ()))
        memo[id(parameter)] = nn.Parameter(part, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = take(buffer, by_name.get(name, ()))
    subnet = copy.deepcopy(model, memo)
    for module in subnet.modules():
        _set_widths(module)
    return subnet


@torch.no_grad()
def write_back(model: nn.Module, plan: Plan, units: Tensor, subnet: nn.Module) -> None:
    """Write the subnet of ``units`` back into ``model``; elements the subnet does not have keep their bits."""
    by_name = cuts(plan, units)
    parts = named_tensors(subnet)
    for name, tensor in named_tensors(model).items():
        put_(tensor, parts[name], by_name.get(name, ()))


@torch.no_grad()
def masked(model: nn.Module, plan: Plan, units: Tensor) -> nn.Module:
    """Return a full-size copy of ``model`` in which whatever a holder of ``units`` does not have is zero.

    For tests: ``extract(model, plan, units)`` computes the same outputs and, on what is held, the same gradients.
    """
    reference = copy.deepcopy(model)
    by_name = cuts(plan, units)
    for name, tensor in named_tensors(reference).items():
        part = take(tensor, by_name.get(name, ()))
        tensor.zero_()
        put_(tensor, part, by_name.get(name, ()))
    return reference


def narrow_model(model: nn.Module, plan: Plan, fraction: float, seed: int) -> nn.Module:
    """Return a fresh narrow network with the first ``fraction`` of each axis of ``model``, at least one unit.

    Modules that have ``reset_parameters`` are initialized anew, as a network of that width would be; what such a
    module does not own keeps the values it has in ``model``.
    """
    units = torch.cat(
        [torch.arange(axis.start, axis.start + max(1, int(fraction * axis.num_units + 0.5))) for axis in plan.axes]
        or [torch.empty(0, dtype=torch.int64)]
    )
    narrow = extract(model, plan, units)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in narrow.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return narrow


def _set_widths(module: nn.Module) -> None:
    """Make the widths that a standard module keeps beside its tensors agree with the tensors."""
    widths: Mapping[str, int] = {}
    match module:
        case nn.Linear():
            widths = {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            widths = {"out_channels": module.weight.shape[0], "in_channels": module.weight.shape[1] * module.groups}
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            widths = {"in_channels": module.weight.shape[0], "out_channels": module.weight.shape[1] * module.groups}
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            known = [t for t in tensors if t is not None]
            widths = {"num_features": known[0].shape[0]} if known else {}
        case nn.Embedding():
            widths = {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    for name, width in widths.items():
        setattr(module, name, width)
