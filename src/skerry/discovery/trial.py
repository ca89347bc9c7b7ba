"""Trial: run a narrow net beside what the trace says it should do, and leave out the axes with which it does not.

Widths can be written into a ``forward`` in ways that no operation shows: ``view(B, T, 4, -1)`` runs on any width, with
heads that are no heads any more; ``x / x.shape[-1]`` divides by another number. So each operation of the narrow net is
compared with the same one of the full net: its result must have the size that the plan gives it, and the numbers it was
called with must be the same.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skerry.discovery.trace import Step, Trace, module_names, numbers_of, quietly
from skerry.inputs import Inputs, call
from skerry.patches import remedy
from skerry.plan import Axis, Note, Plan
from skerry.subnet import extract


@dataclass(frozen=True)
class Failure:
    """Where a narrow net went wrong, how, and the axes to blame (none if that is not known)."""

    module: str
    said: str
    axes: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Ran:
    """An operation of the narrow net: its result's shape and its numbers."""

    name: str
    shape: torch.Size
    numbers: tuple[float, ...]


class _Recorder(TorchDispatchMode):
    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.ran: dict[str, list[Ran]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        out = next((t for t in tree_leaves(result) if isinstance(t, Tensor)), None)
        if out is not None:
            where = self.running[-1] if self.running else ""
            self.ran.setdefault(where, []).append(Ran(str(func.overloadpacket), out.shape, numbers_of(func, args)))
        return result


def drop_what_fails(model: nn.Module, inputs: Inputs, plan: Plan, trace: Trace, unit_of_label: Tensor) -> Plan:
    """Return the plan without axes that some ``forward`` does not let be narrow, with a note for each.

    Args:
        model: the full model.
        inputs: example inputs.
        plan: what the trace allows.
        trace: of the full model on these inputs.
        unit_of_label: for each label the id of its unit in ``plan``, -1 for labels that are not dealt out.
    """
    everything = plan
    while plan.axes:
        failure = _failure(model, inputs, plan, trace, _held(everything, plan, unit_of_label))
        if failure is None:
            break
        blamed = failure.axes or {a.name for a in plan.axes if _is_in(plan, a, failure.module)}
        if not blamed or len(blamed) == len(plan.axes) > 1:
            alone = [(a.name, plan.only(a.name)) for a in plan.axes]
            found = {
                name: fails
                for name, one in alone
                if (fails := _failure(model, inputs, one, trace, _held(everything, one, unit_of_label))) is not None
            }
            blamed, failure = set(found), next(iter(found.values()), failure)
        blamed = blamed or {a.name for a in plan.axes}
        where = failure.module or "the model's own forward"
        what_to_do = remedy(failure.module, model.get_submodule(failure.module))
        notes = [Note(f"axis {name}", f"hard-coded width in {where} ({failure.said}); {what_to_do}") for name in blamed]
        plan = replace(plan.without(*blamed), notes=plan.notes + tuple(notes))
    return plan


def some_units(plan: Plan) -> Tensor:
    """About 2 of 11 units of each axis, so that the net is small and halves and thirds do not fit by chance."""
    units = []
    for axis in plan.axes:
        ids = torch.arange(axis.num_units)
        units.append(axis.start + ids[torch.isin(ids % 11, torch.tensor([1, 5]))])
    return torch.cat(units) if units else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Held:
    """For each label whether the trial's subnet has it, and the number of its axis in ``names`` (-1: none)."""

    held: Tensor
    axis: Tensor
    names: Sequence[str]


def _held(everything: Plan, plan: Plan, unit_of_label: Tensor) -> Held:
    start = {axis.name: axis.start for axis in plan.axes}
    mine = torch.zeros(plan.num_units, dtype=torch.bool)
    mine[some_units(plan)] = True
    held, of_axis = torch.ones(len(unit_of_label), dtype=torch.bool), torch.full((len(unit_of_label),), -1)
    for number, axis in enumerate(everything.axes):
        here = (unit_of_label >= axis.start) & (unit_of_label < axis.start + axis.num_units)
        of_axis[here] = number
        if axis.name in start:
            held[here] = mine[unit_of_label[here].long() - axis.start + start[axis.name]]
    return Held(held, of_axis, [axis.name for axis in everything.axes])


def _failure(model: nn.Module, inputs: Inputs, plan: Plan, trace: Trace, labels: Held) -> Failure | None:
    """Run a narrow net; return how it failed, None if it did what the trace says."""
    running: list[str] = []
    units = some_units(plan)
    try:
        subnet = extract(model, plan, units, copy_shared=False)
        with quietly(subnet), module_names(subnet, running):
            recorder = _Recorder(running)
            with recorder:
                call(subnet, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError, KeyError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return Failure(running[-1] if running else "", said)
    patched = {name for name, module in subnet.named_modules() if "forward" in vars(module)}
    steps: dict[str, list[Step]] = {}
    for step in trace.steps:
        if step.result and step.module not in patched:
            steps.setdefault(step.module, []).append(step)
    return next(_deviations(steps, recorder.ran, plan, labels), None)


def _deviations(
    steps: Mapping[str, Sequence[Step]], ran: Mapping[str, Sequence[Ran]], plan: Plan, labels: Held
) -> Iterator[Failure]:
    """Compare the operations of each module, in order, that both nets did.

    They need not be all: what an expert does depends on the tokens it gets. Nor are dims without labels compared.
    """
    dealt = {axis.name for axis in plan.axes}
    for module, expected in steps.items():
        for step, got in _both(expected, ran.get(module, ())):
            axes = {int(k) for field in step.fields for k in torch.unique(labels.axis[field.ids])} - {-1}
            blamed = frozenset(labels.names[k] for k in axes) & dealt
            if step.numbers != got.numbers:
                said = f"{step.name} by {list(got.numbers)} instead of {list(step.numbers)} in a narrow net"
                yield Failure(module, said, blamed)
            for field in step.fields:
                for d in field.dims:
                    size = int(labels.held[field.ids].movedim(d, 0).reshape(field.ids.shape[d], -1).any(1).sum())
                    if d < len(got.shape) and size != got.shape[d]:
                        said = f"{step.name} gives shape {tuple(got.shape)} in a narrow net, expected {size} in dim {d}"
                        yield Failure(module, said, blamed)


def _both(expected: Sequence[Step], got: Sequence[Ran]) -> Iterator[tuple[Step, Ran]]:
    """Pair what two runs of a module have in common."""
    names, others = [step.name for step in expected], [one.name for one in got]
    if names == others:
        yield from zip(expected, got, strict=True)
        return
    for a, b, length in difflib.SequenceMatcher(None, names, others, autojunk=False).get_matching_blocks():
        yield from zip(expected[a : a + length], got[b : b + length], strict=True)


def _is_in(plan: Plan, axis: Axis, module: str) -> bool:
    return bool(module) and any(name.startswith(f"{module}.") for name in plan._governed(axis))
