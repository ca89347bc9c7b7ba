"""Blocks: residual blocks as units. A subnet without a block has the identity in its place and none of its tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from skerry.choose import did_you_mean
from skerry.discovery.forward_contexts import after_each, without_side_effects
from skerry.model.inputs import Inputs, call
from skerry.model.tensors import named_tensors
from skerry.plan.dims import Axis
from skerry.plan.rules import match
from skerry.plan.table import Plan


class Blocks:
    """Deals out residual blocks whole: each module that matches one of ``patterns`` is a unit of one axis.

    A block must return the shape it gets: ``x + f(x)``, which is the identity without ``f``.

    Args:
        patterns: patterns of module names (``"layer3.[1-9]"``); ``*``, ``?`` and ``[12]`` match within one component of
            a dotted name.
        axis: the axis's name; by default "blocks" and the patterns.
        branch: the module within a block whose output is added to the block's input (``"conv2"``), or several such
            modules (a transformer's ``["attn.c_proj", "mlp.c_proj"]``). The full model adds up all branches, but a
            subnet only its own. With this set, calibration multiplies the branches' parameters by the fraction of
            subnets that had the block, as ResIST does (Dun et al., 2022, arXiv 2107.00961). None: not scaled.

    Example:
        >>> import torch
        >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
        >>> print(Blocks("*").plan(model, torch.randn(2, 4)).axes[0].num_units)
        3
    """

    def __init__(self, *patterns: str, axis: str | None = None, branch: str | Sequence[str] | None = None) -> None:
        self.patterns, self.axis = patterns, axis or f"blocks {' '.join(patterns)}"
        self.branches = (branch,) if isinstance(branch, str) else tuple(branch or ())

    def plan(self, model: nn.Module, example_inputs: Inputs) -> Plan:
        """Return the plan that deals out these blocks; add it to others with ``+``.

        Args:
            model: is run once and not changed.
            example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.

        Raises:
            ValueError: a pattern matches nothing, or a block changes the shape, does not run on the inputs, contains
                another block, shares a tensor with something else, or has no such branch.
        """
        modules = dict(model.named_modules())
        for pattern in self.patterns:
            if not any(name and match(pattern, name) is not None for name in modules):
                hint = did_you_mean(pattern, modules)
                raise ValueError(f"Blocks('{pattern}') matches no module (a * is one component of the name){hint}")
        names = [n for n in modules if n and any(match(pattern, n) is not None for pattern in self.patterns)]
        _check_shapes(model, example_inputs, names)
        _check_tensors(model, names)
        scaled = {}
        for unit, name in enumerate(names):
            for last in self.branches:
                branch = modules.get(f"{name}.{last}")
                if branch is None:
                    raise ValueError(f"{name}: no module '{last}' in it, expected the branch's last module")
                scaled.update({f"{name}.{last}.{p}": unit for p, _ in branch.named_parameters()})
        axis = Axis(self.axis, len(names), "blocks")
        shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
        return Plan((axis,), {}, shapes, {name: unit for unit, name in enumerate(names)}, scaled)


def _check_shapes(model: nn.Module, inputs: Inputs, names: list[str]) -> None:
    """Refuse a block that does not run on the inputs or that changes the shape."""
    seen: set[str] = set()

    def check(name: str, args: tuple[Any, ...], output: Any) -> None:
        seen.add(name)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            kinds = f"takes {type(x).__name__} first and returns {type(output).__name__}"
            raise ValueError(f"{name}: {kinds}, expected one tensor each, so that the identity can replace it")
        if x.shape != output.shape or x.dtype != output.dtype:
            raise ValueError(
                f"{name}: takes {tuple(x.shape)}, returns {tuple(output.shape)}, expected the same shape; a block "
                "that changes it cannot be skipped: leave it out, as in Blocks('layer3.[1-9]')"
            )

    blocks = {name: model.get_submodule(name) for name in names}
    with without_side_effects(model), after_each(blocks, check):
        call(model, inputs)
    for name in names:
        if name not in seen:
            raise ValueError(f"{name}: not run on the example inputs, so its shapes are not known; leave it out")


def _check_tensors(model: nn.Module, names: list[str]) -> None:
    for name in names:
        inside = next((other for other in names if other != name and name.startswith(f"{other}.")), None)
        if inside is not None:
            raise ValueError(f"{name}: inside {inside}, which is a block too; blocks cannot contain one another")
    owner: dict[int, str] = {}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in everything:
        block = next((b for b in names if name.startswith(f"{b}.")), "")
        other = owner.setdefault(id(tensor), block)
        if other != block:
            raise ValueError(
                f"{name}: shared between {block or 'the rest of the model'} and {other or 'the rest of the model'}, "
                "expected blocks with tensors of their own"
            )
