"""Builds the axes and the table of a plan from rules, and checks that the rules agree."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skerry.model.tensors import canonical_names, named_tensors
from skerry.plan.dims import Axis, DealtDim, numbered
from skerry.plan.rules import Entry, Rules, entries


def axes_and_dims(model: nn.Module, rules: Rules) -> tuple[tuple[Axis, ...], dict[str, tuple[DealtDim | None, ...]]]:
    """Return the axes that ``rules`` make, and the table row of each tensor that they deal out.

    Raises:
        ValueError: see ``Plan.from_rules``.
    """
    tensors, canonical = named_tensors(model), canonical_names(model)
    wanted = list(entries(model, rules))
    for entry in wanted:
        if entry.tensor not in canonical:
            raise ValueError(f"{entry.tensor}: not a parameter of its own (parametrized?); leave the axis whole")
    axes = _axes(wanted, {entry.tensor: tensors[canonical[entry.tensor]] for entry in wanted})
    by_name = {axis.name: axis for axis in axes}

    shared: dict[tuple[str, int, int], Tensor] = {}  # dims with the same units share one tensor
    # tensor -> dim -> (how it is dealt, its axis, its name in the rule)
    table: dict[str, dict[int, tuple[DealtDim, str, str]]] = {}
    for entry in wanted:
        name, axis = canonical[entry.tensor], by_name[entry.axis]
        size = tensors[name].shape[entry.dim]
        units = shared.setdefault((axis.name, size, entry.parts), _unit_ids(entry, axis, size))
        dealt = DealtDim(units, entry.role)
        before = table.setdefault(name, {}).setdefault(entry.dim, (dealt, entry.axis, entry.tensor))
        if (before[1], before[0].role) != (entry.axis, entry.role):
            raise ValueError(
                f"{entry.tensor} dim {entry.dim}: {entry.role} of axis '{entry.axis}', but {before[0].role} of "
                f"axis '{before[1]}' by the rule for {before[2]}; a dim belongs to one axis in one role"
            )
    _check_ties(canonical, table, {entry.tensor for entry in wanted})
    return axes, {
        name: tuple(by_dim[d][0] if d in by_dim else None for d in range(tensors[name].dim()))
        for name, by_dim in table.items()
    }


def _axes(wanted: list[Entry], tensors: Mapping[str, Tensor]) -> tuple[Axis, ...]:
    """Return the axes of all entries; raise ValueError where sizes disagree, or one is made or read only."""
    made: dict[str, tuple[int, Entry]] = {}
    for entry in wanted:
        if entry.role == "out":
            size = entry.num_units or tensors[entry.tensor].shape[entry.dim]
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
    return numbered(Axis(name, size, entry.kind) for name, (size, entry) in made.items())


def _unit_ids(entry: Entry, axis: Axis, size: int) -> Tensor:
    """Return the unit id of each index of the entry's dim, int32."""
    per_unit, rest = divmod(size, axis.num_units * entry.parts)
    if rest or (per_unit != 1 and entry.role == "out" and not entry.num_units):
        raise ValueError(
            f"{entry.tensor} dim {entry.dim}: {size} indices, expected a multiple of the {axis.num_units} units of "
            f"axis '{axis.name}'; the rule names the wrong axis or the wrong module"
        )
    return torch.tensor(axis.units, dtype=torch.int32).repeat_interleave(per_unit).repeat(entry.parts)


def _check_ties(canonical: Mapping[str, str], table: Mapping[str, Mapping[int, object]], ruled: set[str]) -> None:
    """Raise ValueError where a tied tensor is dealt out under only one of its names."""
    for alias, name in canonical.items():
        if name in table and alias not in ruled:
            by = next(other for other in ruled if canonical[other] == name)
            raise ValueError(
                f"{alias}: tied to {by}, which a rule deals out; give a rule for {alias.rpartition('.')[0]} as well, "
                "or leave the axis whole"
            )
