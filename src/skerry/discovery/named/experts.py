"""Experts as units: a subnet has some experts of a mixture, and the rows of the router that choose them."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from skerry.choose import did_you_mean
from skerry.discovery.verify import verify, verify_small
from skerry.model.inputs import Inputs
from skerry.model.tensors import canonical_names, named_tensors
from skerry.plan.dims import Axis, DealtDim, numbered
from skerry.plan.rules import match
from skerry.plan.table import Plan
from skerry.subnet.kept_numbers import kept_numbers


class Experts:
    """Deals out whole experts: each module that matches one of ``patterns`` is a mixture, with its router.

    A subnet computes the mixture over the experts that it has, as if the router never chose the others: the best k of
    these, with weights from a softmax (or whatever the router uses) over these. If it has fewer than k, it is refused.
    The experts are the members of a ``ModuleList``, or the first dim of tensors with three dims.

    Args:
        patterns: patterns of module names (``"model.layers.*.mlp"``); ``*``, ``?`` and ``[12]`` match within one
            component of a dotted name.

    Example:
        >>> class Mixture(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.router = nn.Linear(6, 8)
        ...         self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))
        ...     def forward(self, x):
        ...         weight, chosen = self.router(x).softmax(-1).topk(2)
        ...         return sum((weight * (chosen == k)).sum(-1, True) * each(x) for k, each in enumerate(self.experts))
        >>> print(Experts("0").plan(nn.Sequential(Mixture()), torch.randn(9, 6)).axes[0].num_units)
        8
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns

    def plan(self, model: nn.Module, example_inputs: Inputs) -> Plan:
        """Return the plan that deals out these experts; add it to others with ``+``.

        Args:
            model: is not changed.
            example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.

        Raises:
            ValueError: a pattern matches nothing, a module has no experts or no router, or a subnet with half of the
                experts does not compute the mixture over these.
        """
        modules = dict(model.named_modules())
        for pattern in self.patterns:
            if not any(match(pattern, name) is not None for name in modules):
                raise ValueError(f"Experts('{pattern}') matches no module{did_you_mean(pattern, modules)}")
        names = [name for name in modules if any(match(pattern, name) is not None for pattern in self.patterns)]
        axes = numbered(Axis(f"experts of {name}", _num_experts(name, modules[name]), "experts") for name in names)
        dims: dict[str, tuple[DealtDim | None, ...]] = {}
        blocks: dict[str, int] = {}
        canonical, tensors = canonical_names(model), named_tensors(model)
        for name, axis in zip(names, axes, strict=True):
            own = dict(_blocks(name, modules[name], axis))
            dim = DealtDim(torch.arange(axis.start, axis.units.stop, dtype=torch.int32), "out")
            prefix, others = f"{name}." if name else "", tuple(f"{block}." for block in own)
            inside = [n for n in canonical if n.startswith(prefix) and not n.startswith(others)]
            owners = _owners({n: tensors[canonical[n]] for n in inside}, axis.num_units)
            routers = [owner for owner, of in owners.items() if any(tensors[canonical[n]].dim() == 2 for n in of)]
            routers = [owner for owner in routers if not any(tensors[canonical[n]].dim() > 2 for n in owners[owner])]
            if not routers and not any(tensors[canonical[n]].dim() == 2 for of in owners.values() for n in of):
                raise ValueError(
                    f"{name}: no router with {axis.num_units} rows, one an expert; name the module that has it"
                )
            if len(routers) > 1:
                raise ValueError(
                    f"{name}: {' and '.join(routers)} have {axis.num_units} rows each, one an expert, so "
                    "it cannot be told which is the router; give a layer that is none another width (routers with a "
                    "second layer for noise are not known: deal out the experts' hidden units, without Experts)"
                )
            of_experts = [owner for owner, of in owners.items() if any(tensors[canonical[n]].dim() > 2 for n in of)]
            found = {
                canonical[n]: (dim, *[None] * (tensors[canonical[n]].dim() - 1))
                for owner in {*routers, *of_experts}
                for n in owners[owner]
            }
            dims, blocks = {**dims, **found}, {**blocks, **own}
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        plan = Plan(axes, dims, shapes, blocks)
        return _with_numbers(model, plan, dict(zip(names, axes, strict=True)), example_inputs)


def _num_experts(name: str, mixture: nn.Module) -> int:
    """Return the number of experts: of the first ModuleList, or of matrices in the first tensor with three dims."""
    stacked = [len(p) for module in mixture.modules() for p in module.parameters(recurse=False) if p.dim() == 3]
    lists = [len(module) for module in mixture.modules() if isinstance(module, nn.ModuleList)]
    number = next(iter(lists + stacked), 0)
    if number < 2:
        raise ValueError(
            f"{name} ({type(mixture).__name__}): no ModuleList and no tensor with three dims, expected experts"
        )
    return number


def _blocks(name: str, mixture: nn.Module, axis: Axis) -> Iterator[tuple[str, int]]:
    """Yield the experts that are modules, each with its unit."""
    for path, module in mixture.named_modules(prefix=name):
        if isinstance(module, nn.ModuleList) and len(module) == axis.num_units:
            yield from ((f"{path}.{k}", axis.start + k) for k in range(len(module)))


def _owners(tensors: Mapping[str, torch.Tensor], num_units: int) -> dict[str, list[str]]:
    """Return the tensors whose first dim has one index an expert, by the module that has them."""
    owners: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.dim() and len(tensor) == num_units:
            owners.setdefault(name.rpartition(".")[0], []).append(name)
    return owners


def _with_numbers(model: nn.Module, plan: Plan, axes: Mapping[str, Axis], inputs: Inputs) -> Plan:
    """Return ``plan`` with the numbers of experts that modules keep, with which subnets are right."""
    check = verify_small if any(p.is_meta for p in model.parameters()) else verify
    refused = None
    for named in (True, False):
        numbers: dict[str, dict[str, str]] = {}
        for name, axis in axes.items():
            for path, module in model.get_submodule(name).named_modules(prefix=name):
                own = [p for p, n in kept_numbers(module).items() if n == axis.num_units]
                own = [p for p in own if "expert" in p and "per_tok" not in p] if named else own
                numbers.update({path: dict.fromkeys(own, axis.name)} if own else {})
        adapted = Plan(plan.axes, plan.dims, plan.shapes, plan.blocks, numbers=numbers)
        try:
            check(model, adapted, inputs)
        except ValueError as error:
            refused = refused or error
        else:
            return adapted
    assert refused is not None
    raise refused
