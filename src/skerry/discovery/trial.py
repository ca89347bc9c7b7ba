"""Trial: run a narrow net, and leave out the axes with which it does not run."""

from dataclasses import replace

import torch
from torch import nn

from skerry.discovery.trace import module_names, quietly
from skerry.inputs import Inputs, call, tensors_of
from skerry.patches import remedy
from skerry.plan import Note, Plan
from skerry.subnet import extract


def drop_what_fails(model: nn.Module, inputs: Inputs, plan: Plan) -> Plan:
    """Return the plan without axes that some ``forward`` does not let be narrow.

    The module that fails names the axes to leave out: those with tensors in it. Where none has, axes are tried one by
    one.
    """
    with quietly(model):
        expected = [t.shape for t in tensors_of(call(model, inputs))]
    while plan.axes:
        failed = _failure(model, inputs, plan, expected)
        if failed is None:
            return plan
        module, said = failed
        blamed = [axis.name for axis in plan.axes if _is_in(plan, axis.name, module)]
        if not blamed or len(blamed) == len(plan.axes) > 1:
            blamed = [a.name for a in plan.axes if _failure(model, inputs, plan.only(a.name), expected) is not None]
        blamed = blamed or [axis.name for axis in plan.axes]
        where = module or "the model's own forward"
        why = f"hard-coded width in {where} ({said}); {remedy(module, model.get_submodule(module))}"
        notes = plan.notes + tuple(Note(f"axis {name}", why) for name in blamed)
        kept = [axis for axis in plan.axes if axis.name not in blamed]
        plan = replace(plan._keep(kept), notes=notes)
    return plan


def _failure(model: nn.Module, inputs: Inputs, plan: Plan, expected: list[torch.Size]) -> tuple[str, str] | None:
    """Run a narrow net; return where it failed and what was said, None if it ran."""
    running: list[str] = []
    units = some_units(plan)
    try:
        subnet = extract(model, plan, units, copy_shared=False)
        with quietly(subnet), module_names(subnet, running):
            got = [t.shape for t in tensors_of(call(subnet, inputs))]
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError, KeyError) as error:
        return (running[-1] if running else "", (str(error).splitlines() or [type(error).__name__])[0][:120])
    if got != expected:
        return "", f"outputs of shape {[tuple(s) for s in got]}, expected {[tuple(s) for s in expected]}"
    return None


def some_units(plan: Plan) -> torch.Tensor:
    """About 2 of 5 units of each axis, at least one and never all, so that halves and thirds do not fit by chance."""
    units = []
    for axis in plan.axes:
        ids = torch.arange(axis.start, axis.start + axis.num_units)
        units.append(ids[torch.isin((ids - axis.start) % 5, torch.tensor([1, 3]))])
    return torch.cat(units) if units else torch.empty(0, dtype=torch.int64)


def _is_in(plan: Plan, axis_name: str, module: str) -> bool:
    axis = next(a for a in plan.axes if a.name == axis_name)
    return bool(module) and any(name.startswith(f"{module}.") for name in plan._governed(axis))
