"""The plan: which indices of which tensor dims belong to which units.

A *unit* is the smallest thing dealt out (a neuron, a channel); an *axis* is a set of interchangeable units. The plan is
one table: for each dim of each dealt tensor, one unit id per index. It says nothing of workers; who holds a unit is
decided anew each round in ``partition.py``. A tensor that is not in the table is *shared*: every worker has it whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skerry import rules as rules_module
from skerry.optimizer_state import parameter_of
from skerry.rules import Role, Rules


@dataclass(frozen=True)
class Axis:
    """A set of interchangeable units, with the global ids ``start .. start + num_units - 1``."""

    name: str
    num_units: int
    kind: str = "neurons"
    start: int = 0


@dataclass(frozen=True, eq=False)
class DealtDim:
    """One tensor dim that is dealt out.

    Attributes:
        units: int32 of the dim's size: the global unit id of each index, -1 where an index is not dealt out.
        role: ``"out"`` where the dim makes the units, ``"in"`` where it sums over them. The scale that makes up for
            the units a subnet did not have is folded into the ``"in"`` dims (see ``calibrate.py``).
    """

    units: Tensor
    role: Role


@dataclass(frozen=True, eq=False)
class Plan:
    """Which dims of which tensors belong to which units.

    Attributes:
        axes: the axes, in the order of their unit ids.
        dims: tensor name -> one ``DealtDim`` or None a dim; only tensors with a dealt dim are in it.
        shapes: the shape of every parameter and buffer of the model it was made for.

    Example:
        >>> from skerry import In, Out
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> plan = Plan.from_rules(model, {"0": Out("hidden"), "2": In("hidden")})
        >>> [(axis.name, axis.num_units) for axis in plan.axes]
        [('hidden', 6)]
    """

    axes: tuple[Axis, ...]
    dims: Mapping[str, tuple[DealtDim | None, ...]]
    shapes: Mapping[str, torch.Size] = field(repr=False)

    @property
    def num_units(self) -> int:
        """The number of units of all axes."""
        return sum(axis.num_units for axis in self.axes)

    def row(self, name: str, shape: torch.Size) -> tuple[DealtDim | None, ...]:
        """Return the table row of a full-size tensor, empty where it is shared.

        Optimizer state of its parameter's shape follows its parameter's row; other state (step counts) is shared.
        """
        owner = parameter_of(name)
        return self.dims.get(owner, ()) if shape == self.shapes[owner] else ()

    @classmethod
    def whole(cls, model: nn.Module) -> "Plan":
        """The plan that deals out nothing: every tensor is shared."""
        return cls((), {}, {name: tensor.shape for name, tensor in named_tensors(model).items()})

    @classmethod
    def from_rules(cls, model: nn.Module, rules: Rules) -> "Plan":
        """Build the plan that ``rules`` describe, for example ``{"fc1": Out("h"), "bn": Out("h"), "fc2": In("h")}``.

        An axis has as many units as its ``Out`` dims have indices. An ``In`` dim k times as long has k neighbouring
        indices a unit: a channel is H*W columns after a flatten.

        Raises:
            ValueError: a rule matches nothing or cannot hold, sizes disagree, an axis is made but never read or read
                but never made, or a tied tensor is ruled on under only one of its names.
        """
        tensors = named_tensors(model)
        canonical = _canonical_names(model)
        wanted = list(rules_module.entries(model, rules))
        for entry in wanted:
            if entry.tensor not in canonical:
                raise ValueError(f"{entry.tensor}: not a parameter of its own (parametrized?); leave the axis whole")
        axes = _axes(wanted, {entry.tensor: tensors[canonical[entry.tensor]] for entry in wanted})
        by_name = {axis.name: axis for axis in axes}

        ids: dict[tuple[str, int], Tensor] = {}  # one tensor for all dims that run alike; others key on its identity
        # tensor -> dim -> (how it is dealt, its axis, its name in the rule)
        table: dict[str, dict[int, tuple[DealtDim, str, str]]] = {}
        for entry in wanted:
            name, axis = canonical[entry.tensor], by_name[entry.axis]
            size = tensors[name].shape[entry.dim]
            units = ids.setdefault((axis.name, size), _unit_ids(entry, axis, size))
            dealt = DealtDim(units, entry.role)
            before = table.setdefault(name, {}).setdefault(entry.dim, (dealt, entry.axis, entry.tensor))
            if (before[1], before[0].role) != (entry.axis, entry.role):
                raise ValueError(
                    f"{entry.tensor} dim {entry.dim}: {entry.role} of axis '{entry.axis}', but {before[0].role} of "
                    f"axis '{before[1]}' by the rule for {before[2]}; a dim belongs to one axis in one role"
                )
        _check_ties(canonical, table, {entry.tensor for entry in wanted})
        dims = {
            name: tuple(by_dim[d][0] if d in by_dim else None for d in range(tensors[name].dim()))
            for name, by_dim in table.items()
        }
        return cls(axes, dims, {name: tensor.shape for name, tensor in tensors.items()})

    def check(self, model: nn.Module) -> None:
        """Raise ValueError, naming the tensor, unless ``model`` has just the tensors this plan was made for."""
        shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
        for name in [*self.shapes, *shapes]:
            got, expected = shapes.get(name), self.shapes.get(name)
            if got != expected:
                raise ValueError(
                    f"{name}: the model has {_shape_text(got)}, the plan {_shape_text(expected)}; "
                    "make the plan from this model"
                )

    def __str__(self) -> str:
        sizes = {name: shape.numel() for name, shape in self.shapes.items()}
        lines = [f"{'axis':<16}{'kind':<10}{'units':>7}  tensors"]
        for axis in self.axes:
            touched = [
                name for name, dims in self.dims.items() if any(d is not None and _touches(d, axis) for d in dims)
            ]
            lines.append(f"{axis.name:<16}{axis.kind:<10}{axis.num_units:>7}  {', '.join(touched)}")
        dealt = sum(sizes[name] for name in self.dims)
        lines.append(f"{dealt:,} of {sum(sizes.values()):,} elements are dealt out, the rest is on every worker")
        return "\n".join(lines)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter, then every buffer, by its dotted name; a tied one once, under its first name."""
    return {**{n: p.detach() for n, p in model.named_parameters()}, **dict(model.named_buffers())}


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Map each dotted name of a tensor to the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _axes(wanted: list[rules_module.Entry], tensors: Mapping[str, Tensor]) -> tuple[Axis, ...]:
    made: dict[str, tuple[int, rules_module.Entry]] = {}
    for entry in wanted:
        if entry.role == "out":
            size = tensors[entry.tensor].shape[entry.dim]
            expected, by = made.setdefault(entry.axis, (size, entry))
            if size != expected:
                raise ValueError(
                    f"{entry.tensor} dim {entry.dim}: {size} units of axis '{entry.axis}', expected {expected} "
                    f"(from {by.tensor}); one of the two rules names the wrong axis"
                )
    read = {entry.axis for entry in wanted if entry.role == "in"}
    for name in read - set(made):
        raise ValueError(f"axis '{name}' is read (In) but nothing makes it; add Out('{name}') for the module before")
    for name in set(made) - read:
        raise ValueError(
            f"axis '{name}' is made (Out) but nothing reads it, so a subnet's outputs would lack units; "
            f"add In('{name}') for the module after, or leave the axis whole"
        )
    axes, start = [], 0
    for name, (size, entry) in made.items():
        axes.append(Axis(name, size, entry.kind, start))
        start += size
    return tuple(axes)


def _unit_ids(entry: rules_module.Entry, axis: Axis, size: int) -> Tensor:
    per_unit, rest = divmod(size, axis.num_units)
    if rest or (per_unit != 1 and entry.role == "out"):
        raise ValueError(
            f"{entry.tensor} dim {entry.dim}: {size} indices, expected a multiple of the {axis.num_units} units of "
            f"axis '{axis.name}'; the rule names the wrong axis or the wrong module"
        )
    return torch.arange(axis.start, axis.start + axis.num_units, dtype=torch.int32).repeat_interleave(per_unit)


def _check_ties(canonical: Mapping[str, str], table: Mapping[str, Mapping[int, object]], ruled: set[str]) -> None:
    for alias, name in canonical.items():
        if name in table and alias not in ruled:
            by = next(other for other in ruled if canonical[other] == name)
            raise ValueError(
                f"{alias}: tied to {by}, which a rule deals out; give a rule for {alias.rpartition('.')[0]} as well, "
                "or leave the axis whole"
            )


def _touches(dim: DealtDim, axis: Axis) -> bool:
    return bool(((dim.units >= axis.start) & (dim.units < axis.start + axis.num_units)).any())


def _shape_text(shape: torch.Size | None) -> str:
    return "no such tensor" if shape is None else f"shape {tuple(shape)}"
