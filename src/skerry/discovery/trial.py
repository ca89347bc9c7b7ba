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

from skerry.discovery.numbers import Constants, numbers_of, written_by
from skerry.discovery.running import module_names, quietly
from skerry.discovery.trace import Step, Trace
from skerry.model.inputs import Inputs, call
from skerry.plan.dims import Axis
from skerry.plan.table import Note, Plan
from skerry.subnet.adapters import remedy
from skerry.subnet.extract import extract


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
    def __init__(self, running: list[str], full: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.full = {id(p): name for name, p in full.named_parameters()}
        self.of_full: set[str] = set()  # parameters of the full model that the narrow net used
        self.constants = Constants()
        self.ran: dict[str, list[Ran]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        out = next((t for t in tree_leaves(result) if isinstance(t, Tensor)), None)
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.of_full |= {self.full[id(t)] for t in inputs if id(t) in self.full}
        if out is not None:
            outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            numbers = numbers_of(func, args, kwargs) + self.constants.note(
                func, inputs, outs, written_by(func, args, kwargs)
            )
            where = self.running[-1] if self.running else ""
            self.ran.setdefault(where, []).append(Ran(str(func.overloadpacket), out.shape, numbers))
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

    def fails(plan: Plan) -> Failure | None:
        return _failure(model, inputs, plan, trace, _held(everything, plan, unit_of_label))

    while plan.axes and (failure := fails(plan)) is not None:
        suspects = failure.axes or {a.name for a in plan.axes if _is_in(plan, a, failure.module)}
        alone = {name: found for name in sorted(suspects) if (found := fails(plan.only(name))) is not None}
        if not alone:
            others = [a.name for a in plan.axes if a.name not in suspects]
            alone = {name: found for name in others if (found := fails(plan.only(name))) is not None}
        blamed = alone or {a.name: failure for a in plan.axes}
        notes = []
        for name, found in blamed.items():
            where = found.module or "the model's own forward"
            what_to_do = remedy(found.module, model.get_submodule(found.module))
            notes.append(Note(f"axis {name}", f"hard-coded width in {where} ({found.said}); {what_to_do}"))
        plan = replace(plan.without(*blamed), notes=plan.notes + tuple(notes))
    return plan


def some_units(plan: Plan) -> Tensor:
    """About 2 of 11 units of each axis, so that the net is small and halves and thirds do not fit by chance.

    Two at least where that is not all: dims with one index are laid out in ways of their own.
    """
    units = []
    for axis in plan.axes:
        ids = torch.arange(axis.num_units)
        some = ids[torch.isin(ids % 11, torch.tensor([1, 5]))]
        if len(some) < 2 < axis.num_units:
            some = torch.tensor([1, 2] if axis.num_units > 3 else [0, 2])
        units.append(axis.start + some)
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
    subnet = extract(model, plan, units, copy_shared=False)
    recorder = _Recorder(running, model)
    try:
        with quietly(subnet), module_names(subnet, running), recorder:
            call(subnet, inputs)
    except Exception as error:  # whatever a forward may raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return Failure(running[-1] if running else "", said)
    if recorder.of_full:
        name = sorted(recorder.of_full)[0]
        said = f"a subnet uses the full model's {name}, which something keeps a reference to (a closure?)"
        return Failure(name.rpartition(".")[0], said)
    patched = {name for name, module in subnet.named_modules() if "forward" in vars(module)}
    steps: dict[str, list[Step]] = {}
    for step in trace.steps:
        if step.shape is not None and step.module not in patched:
            steps.setdefault(step.module, []).append(step)
    return next(_deviations(steps, recorder.ran, plan, labels), None)


def _deviations(
    steps: Mapping[str, Sequence[Step]], ran: Mapping[str, Sequence[Ran]], plan: Plan, labels: Held
) -> Iterator[Failure]:
    """Compare the operations of each module, in order.

    Where the forward looked at values before, it may do something else in a narrow net (what an expert does depends on
    the tokens it gets): there only what both did is compared, and only dims with labels.
    """
    dealt = {axis.name for axis in plan.axes}
    for module, expected in steps.items():
        pairs = _both(expected, ran.get(module, ()))
        if pairs is None:
            yield Failure(module, "a narrow net does other operations")
            continue
        for step, got in pairs:
            axes = {int(k) for field in step.fields for k in torch.unique(labels.axis[field.ids])} - {-1}
            blamed = frozenset(labels.names[k] for k in axes) & dealt
            if step.numbers != got.numbers:
                said = f"{step.name} by {list(got.numbers)} instead of {list(step.numbers)} in a narrow net"
                yield Failure(module, said, blamed)
            sizes = _sizes(step, labels)
            if not step.free and any(n not in (None, m) for n, m in zip(sizes, got.shape, strict=False)):
                wanted = tuple("any" if n is None else n for n in sizes)
                said = f"{step.name} gives shape {tuple(got.shape)} in a narrow net, expected {wanted}"
                yield Failure(module, said, blamed)


def _sizes(step: Step, labels: Held) -> list[int | None]:
    """The size of each dim of a step's result in the trial's subnet; None where it may be any."""
    assert step.shape is not None
    sizes: list[int | None] = [None if step.loose else size for size in step.shape]
    for one in step.fields:
        for d in one.dims:
            if d < len(sizes):
                held = labels.held[one.ids].movedim(d, 0).reshape(one.ids.shape[d], -1).any(1)
                sizes[d] = int(held.sum())
    return sizes


_SAME_ELEMENTS = {"aten._unsafe_view": "aten.view", "aten._reshape_alias": "aten.view", "aten.clone": ""}
"""Operations that come and go with how elements lie in memory, and what stands for them."""


def _both(expected: Sequence[Step], got: Sequence[Ran]) -> list[tuple[Step, Ran]] | None:
    """Pair the operations of two runs of a module; None if they differ and have no reason to."""
    steps = [step for step in expected if _SAME_ELEMENTS.get(step.name, step.name)]
    others = [one for one in got if _SAME_ELEMENTS.get(one.name, one.name)]
    names = [_SAME_ELEMENTS.get(step.name, step.name) for step in steps]
    their_names = [_SAME_ELEMENTS.get(one.name, one.name) for one in others]
    if names == their_names:
        return list(zip(steps, others, strict=True))
    if not any(step.loose for step in expected):
        return None
    blocks = difflib.SequenceMatcher(None, names, their_names, autojunk=False).get_matching_blocks()
    return [pair for a, b, n in blocks for pair in zip(steps[a : a + n], others[b : b + n], strict=True)]


def _is_in(plan: Plan, axis: Axis, module: str) -> bool:
    return bool(module) and any(name.startswith(f"{module}.") for name in plan.governed(axis))
