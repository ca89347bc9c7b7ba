"""Plan files: a plan as JSON, to store beside a run or to write by hand.

The unit ids of a dim are stored as runs ``[first unit, step, count]``, with step 1 for consecutive ids and 0 for equal
ones. Patches are functions and are not stored. Their patterns are, and ``load_plan`` asks for the patches again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.files import atomic
from skerry.plan.dims import Axis, DealtDim, numbered
from skerry.plan.table import Note, Patch, Plan

_FORMAT = "skerry plan 1"


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write ``plan`` to ``path`` as JSON. The file is replaced in one step, so a reader never sees half of it.

    Args:
        plan: the plan.
        path: the file; its folder must exist.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_plan(Plan.whole(model), f"{folder}/plan.json")
        ...     load_plan(f"{folder}/plan.json", model).axes
        ()
    """
    content = {
        "format": _FORMAT,
        "axes": [{"name": a.name, "num_units": a.num_units, "kind": a.kind} for a in plan.axes],
        "shapes": {name: list(shape) for name, shape in plan.shapes.items()},
        "dims": {
            name: [None if dim is None else {"role": dim.role, "units": _runs(dim.units)} for dim in row]
            for name, row in plan.dims.items()
        },
        "blocks": dict(plan.blocks),
        "scaled": dict(plan.scaled),
        "patches": list(plan.patches),
        "numbers": {module: dict(own) for module, own in plan.numbers.items()},
        "notes": [[note.what, note.why] for note in plan.notes],
    }
    atomic.write(Path(path), json.dumps(content, indent=1).encode())


def load_plan(path: str | Path, model: nn.Module, patches: Mapping[str, Patch] | None = None) -> Plan:
    """Read a plan and check that it fits ``model``.

    Args:
        path: a file that ``save_plan`` wrote.
        model: the model that the plan is for.
        patches: by pattern of module names, the patches that the plan was made with.

    Returns:
        The plan.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a plan, its table contradicts itself, it was made for another model (the tensor is
            named), or it needs patches that are not given.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a plan file ({error}); write one with skerry.plan.save_plan") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: format {got!r}, expected {_FORMAT!r}; write it with this version's skerry.plan.save_plan"
        )
    missing = [pattern for pattern in content.get("patches", []) if pattern not in (patches or {})]
    if missing:
        raise ValueError(f"{path}: the plan was made with a patch for '{missing[0]}'; pass it again in patches=")
    try:
        plan = _plan(content, patches or {})
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path}: not a complete plan ({type(error).__name__}: {error}); make it again") from error
    plan.check(model)
    _check_table(plan, path)
    return plan


def _plan(content: Mapping[str, Any], patches: Mapping[str, Patch]) -> Plan:
    known: dict[str, Tensor] = {}  # dims with the same units share one tensor

    def dim(entry: Mapping[str, Any] | None) -> DealtDim | None:
        if entry is None:
            return None
        key = json.dumps(entry["units"])
        if key not in known:
            known[key] = _units(entry["units"])
        return DealtDim(known[key], entry["role"])

    return Plan(
        numbered(Axis(str(a["name"]), int(a["num_units"]), str(a["kind"])) for a in content["axes"]),
        {name: tuple(dim(entry) for entry in row) for name, row in content["dims"].items()},
        {name: torch.Size(shape) for name, shape in content["shapes"].items()},
        {name: int(unit) for name, unit in content["blocks"].items()},
        {name: int(unit) for name, unit in content["scaled"].items()},
        dict(patches),
        {str(module): dict(own) for module, own in content.get("numbers", {}).items()},
        tuple(Note(what, why) for what, why in content["notes"]),
    )


def _check_table(plan: Plan, path: str | Path) -> None:
    """Raise ValueError where the table contradicts the plan's shapes or axes."""
    for name, row in plan.dims.items():
        if name not in plan.shapes:
            raise ValueError(f"{path}: {name} is dealt out but has no shape; make the plan again")
        sizes = tuple(
            size if dim is None else len(dim.units) for dim, size in zip(row, plan.shapes[name], strict=False)
        )
        if sizes != tuple(plan.shapes[name]) or len(row) != len(sizes):
            raise ValueError(f"{path}: {name} has units for sizes {sizes}, expected {tuple(plan.shapes[name])}")
        for dim in row:
            if dim is not None and (dim.role not in ("in", "out") or not _in_range(dim.units, plan)):
                raise ValueError(f"{path}: {name} has unit ids or a role that the plan's axes do not have")
    names = {axis.name for axis in plan.axes}
    for module, own in plan.numbers.items():
        if not set(own.values()) <= names:
            raise ValueError(f"{path}: numbers of '{module}' scale with an axis that the plan does not have")
    for block, unit in [*plan.blocks.items(), *plan.scaled.items()]:
        if not 0 <= unit < plan.num_units:
            raise ValueError(f"{path}: {block} is unit {unit}, expected 0 .. {plan.num_units - 1}")


def _in_range(units: Tensor, plan: Plan) -> bool:
    return bool((units >= -1).all()) and bool((units < plan.num_units).all())


def _runs(units: Tensor) -> list[list[int]]:
    runs: list[list[int]] = []
    for unit in units.tolist():
        if runs:
            first, step, count = runs[-1]
            if count == 1 and unit - first in (0, 1) and (first >= 0 or unit == first):
                runs[-1] = [first, unit - first, 2]
                continue
            if count > 1 and unit == first + step * count:
                runs[-1][2] += 1
                continue
        runs.append([unit, 0, 1])
    return runs


def _units(runs: list[list[int]]) -> Tensor:
    parts = [first + step * torch.arange(count, dtype=torch.int32) for first, step, count in runs]
    return torch.cat(parts).to(torch.int32) if parts else torch.empty(0, dtype=torch.int32)
