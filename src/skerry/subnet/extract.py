"""Extracts the narrow module that a worker trains from the full model, and writes it back."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from skerry.model.tensors import copied, dense_buffers, named_tensors
from skerry.plan import rules
from skerry.plan.dims import Axis, DealtDim, numbered, once_per_units, renumbered_units
from skerry.plan.table import Patch, Plan
from skerry.randomness import own_random_state
from skerry.subnet import adapters, cut_arguments, kept_numbers, written_sizes
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import cut_shape, whole
from skerry.subnet.slicing import put_, take


class Skipped(nn.Module):
    """The identity, in the place of a block that a subnet does not have."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first argument."""
        return x


class Held(nn.ModuleList):
    """The experts of a list that a subnet has: without gaps by index, but under the names of the full model."""

    def __getitem__(self, k: Any) -> Any:
        """Return the k-th of them."""
        return list(self)[k]


def _without_skipped_(subnet: nn.Module, plan: Plan) -> None:
    """Replace each list of experts by those that are held."""
    experts = {unit for axis in plan.axes if axis.kind == "experts" for unit in axis.units}
    for path in dict.fromkeys(block.rpartition(".")[0] for block, unit in plan.blocks.items() if unit in experts):
        held = Held()
        every = subnet.get_submodule(path).named_children()
        held._modules = {name: module for name, module in every if not isinstance(module, Skipped)}
        subnet.set_submodule(path, held)


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Return ``copy.deepcopy(module, memo)``, faster: a module's dozen empty tables of hooks are not deep-copied."""
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in own):
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = kind.__new__(kind)
    for key, value in vars(module).items():
        if key == "_compiled_call_impl":
            continue  # nn.Module does not copy it either
        if key == "_modules":
            value = {name: None if child is None else _copied(child, memo) for name, child in value.items()}
        elif type(value) in (dict, OrderedDict) and not value:
            value = memo.setdefault(id(value), type(value)())
        elif type(value) not in (bool, int, float, str, type(None)):
            value = copy.deepcopy(value, memo)
        new.__dict__[key] = value
    return new


@torch.no_grad()
def extract(model: nn.Module, plan: Plan, units: Tensor, *, copy_shared: bool = True) -> nn.Module:
    """Return the subnet of ``units``: a real, small, dense module of the same class as ``model``.

    ``model`` is not changed. Tied tensors stay tied, and no full-size tensor is copied on the way.

    Args:
        model: the full model.
        plan: its plan.
        units: int64, (number of units,): global ids of the units that the subnet has.
        copy_shared: whether all tensors of the subnet are new. With False, parameters that it has whole are those of
            ``model``: use it to look at a subnet, not to train it.

    Raises:
        ValueError: the model cannot be copied, a module cannot be made narrow, or a patch fails.

    Example:
        >>> from skerry.plan import In, Out
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> plan = Plan.from_rules(model, {"0": Out("hidden"), "2": In("hidden")})
        >>> extract(model, plan, torch.tensor([0, 2, 5]))
        Sequential(
          (0): Linear(in_features=8, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    cuts = Cuts(plan, units)
    memo: dict[int, object] = {}
    for block, unit in plan.blocks.items():
        if not cuts.held[unit]:
            memo[id(model.get_submodule(block))] = Skipped()
    for name, parameter in model.named_parameters():
        cut = cuts.of(name)
        if cut is not None:
            shared = whole(cut) and not copy_shared
            part = parameter.detach() if shared else take(parameter.detach(), cut)
            memo[id(parameter)] = nn.Parameter(part, requires_grad=parameter.requires_grad)
    for name, buffer in dense_buffers(model):
        cut = cuts.of(name)
        if cut is not None:
            memo[id(buffer)] = take(buffer, cut)
    subnet = copied(model, memo, _copied)
    _without_skipped_(subnet, plan)
    fulls = dict(model.named_modules())
    held = {axis.name: cuts.held[axis.units] for axis in plan.axes}
    counts = {name: (int(own.sum()), len(own)) for name, own in held.items()}
    with _parametrizations_at_rest(model), _parametrizations_at_rest(subnet):
        for name, module in subnet.named_modules():
            if name in fulls:
                adapters.fit(module, fulls[name])
                for pattern, patch in plan.patches.items():
                    if rules.match(pattern, name) is not None:
                        _apply(patch, pattern, name, module, fulls[name])
                for path, axis in plan.numbers.get(name, {}).items():
                    if path.startswith(cut_arguments.PREFIX):
                        cut_arguments.cut_argument_(module, path, held[axis])
                        continue
                    written = path.startswith(written_sizes.PREFIX)
                    scale = written_sizes.scale_size_ if written else kept_numbers.scale_number_
                    scale(module, fulls[name], path, *counts[axis])
    return subnet


@contextmanager
def _parametrizations_at_rest(model: nn.Module) -> Iterator[None]:
    """Who reads a parametrized weight computes it, which in training mode may change buffers (a spectral norm's)."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    training = [module for one in lists for module in one.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _apply(patch: Patch, pattern: str, name: str, narrow: nn.Module, full: nn.Module) -> None:
    try:
        patch(narrow, full)
    except Exception as error:
        raise ValueError(
            f"patch '{pattern}' failed on {name} ({type(full).__name__}): {type(error).__name__}: {error}; fix "
            "the patch, which is called as patch(narrow module, full module)"
        ) from error


@torch.no_grad()
def write_back(model: nn.Module, plan: Plan, units: Tensor, subnet: nn.Module) -> None:
    """Write the tensors of a subnet back into ``model``, in place; all other elements keep their bits.

    Args:
        model: the full model.
        plan: its plan.
        units: int64, (number of units,): global ids of the subnet's units.
        subnet: what ``extract(model, plan, units)`` returned, trained or not.

    Example:
        >>> from skerry.plan import In, Out
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> plan = Plan.from_rules(model, {"0": Out("hidden"), "2": In("hidden")})
        >>> units = torch.tensor([0, 2, 5])
        >>> subnet = extract(model, plan, units)
        >>> _ = nn.init.zeros_(subnet[0].bias)
        >>> write_back(model, plan, units, subnet)
        >>> (model[0].bias == 0).nonzero().flatten()
        tensor([0, 2, 5])
    """
    cuts, parts = Cuts(plan, units), named_tensors(subnet)
    for name, tensor in named_tensors(model).items():
        cut = cuts.of(name)
        if cut is not None:
            put_(tensor, parts[name], cut)


def num_narrow_units(axis: Axis, fraction: float) -> int:
    """Return the number of units of ``axis`` in a network with ``fraction`` of them: rounded, at least one."""
    return max(1, int(fraction * axis.num_units + 0.5))


def first_units(plan: Plan, fraction: float) -> Tensor:
    """Return the ids of the units of a network with the first ``fraction`` of each axis, at least one."""
    units = [unit for axis in plan.axes for unit in axis.units[: num_narrow_units(axis, fraction)]]
    return torch.tensor(units, dtype=torch.int64)


def narrow_model(model: nn.Module, plan: Plan, fraction: float, seed: int) -> nn.Module:
    """Return a fresh narrow network with the first ``fraction`` of the units of each axis of ``model``, at least one.

    Its modules are initialized again, as in a network of that width: by the model's own ``_init_weights(module)`` if it
    has one, as models of transformers and nanoGPT do, else by ``reset_parameters`` of those that have it. Other tensors
    keep the values that they have in ``model``, and so do frozen parameters.
    """
    narrow = extract(model, plan, first_units(plan, fraction))
    own: Any = getattr(narrow, "_init_weights", None)
    if not callable(own) or len(inspect.signature(own).parameters) != 1:
        own = None
    with own_random_state(seed), torch.no_grad():
        for module in narrow.modules():
            reset = partial(own, module) if own else getattr(module, "reset_parameters", None)
            if callable(reset):
                kept = [(p, p.detach().clone()) for p in module.parameters() if not p.requires_grad]
                reset()
                for parameter, value in kept:
                    parameter.data.copy_(value)
    return narrow


def plan_of_subnet(plan: Plan, units: Tensor) -> Plan:
    """Return the plan that deals out the subnet of ``units``."""
    cuts = Cuts(plan, units)
    new_id = torch.where(cuts.held, cuts.held.cumsum(0) - 1, -1).to(torch.int32)
    kept = once_per_units(lambda dim: dim.look_up(new_id, -1)[cuts.mask(dim)])
    found = {name: cuts.of(name) for name in plan.shapes}
    return Plan(
        axes=numbered(replace(axis, num_units=int(cuts.held[axis.units].sum())) for axis in plan.axes),
        dims={
            name: tuple(None if dim is None else DealtDim(kept(dim), dim.role) for dim in row)
            for name, row in plan.dims.items()
            if found[name] is not None
        },
        shapes={name: cut_shape(plan.shapes[name], cut) for name, cut in found.items() if cut is not None},
        blocks=renumbered_units(plan.blocks, new_id),
        scaled=renumbered_units(plan.scaled, new_id),
        patches=plan.patches,
        numbers=plan.numbers,
    )
