"""Hard-coded widths: find them by running a narrow net, and leave out the axes for which it does not run as planned.

A width can be written into a ``forward`` in ways that no operation shows. ``view(B, T, 4, -1)`` runs on any width, but
its heads are then not the heads of the full model; ``x / x.shape[-1]`` divides by another number. So each operation of
the narrow net is compared with the same operation of the full net: its result must have the size that the plan gives
it, and the numbers it was called with must be the same.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skerry.discovery.forward_contexts import Running, first_line, without_side_effects
from skerry.discovery.invariant_numbers import InvariantNumbers, written_by
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


class _Recorder(TorchDispatchMode):
    """Records the operations that a narrow net runs, by module."""

    def __init__(self, running: Running, full: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.full = {id(p): name for name, p in full.named_parameters()}
        self.of_full: set[str] = set()  # parameters of the full model that the narrow net used
        self.numbers = InvariantNumbers()
        self.steps: dict[str, list[Step]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.of_full |= {self.full[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self.full}
        outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if outs:
            numbers = self.numbers.of(func, args, kwargs, outs, written_by(func, args, kwargs))
            module, shape = self.running.innermost, tuple(outs[0].shape)
            step = Step(str(func.overloadpacket), module, numbers=numbers, shape=shape)
            self.steps.setdefault(module, []).append(step)
        return result


def drop_hard_coded(model: nn.Module, inputs: Inputs, plan: Plan, trace: Trace, unit_of_label: Tensor) -> Plan:
    """Return the plan without the axes that cannot be narrow because of some ``forward``, with a note for each.

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

    def fail_alone(names: Sequence[str]) -> dict[str, Failure]:
        return {name: found for name in names if (found := fails(plan.only(name))) is not None}

    while plan.axes and (failure := fails(plan)) is not None:
        suspects = failure.axes or {a.name for a in plan.axes if _is_in(plan, a, failure.module)}
        blamed = (
            fail_alone(sorted(suspects))
            or fail_alone([a.name for a in plan.axes if a.name not in suspects])
            or {a.name: failure for a in plan.axes}
        )
        notes = []
        for name, found in blamed.items():
            where = found.module or "the model's own forward"
            what_to_do = remedy(found.module, model.get_submodule(found.module))
            notes.append(Note(f"axis {name}", f"hard-coded width in {where} ({found.said}); {what_to_do}"))
        plan = replace(plan.without(*blamed), notes=plan.notes + tuple(notes))
    return plan


def some_units(plan: Plan) -> Tensor:
    """Return the ids of about 2 of 11 units of each axis: a small net, in which halves and thirds rarely fit.

    At least two of each axis that has more than two, because torch lays out dims with one index differently.
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
    """For each label whether the narrow net has it, and the number of its axis in ``names`` (-1: none)."""

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
    subnet = extract(model, plan, some_units(plan), copy_shared=False)
    running = Running(subnet)
    recorder = _Recorder(running, model)
    try:
        with without_side_effects(subnet), running.tracked(), recorder:
            call(subnet, inputs)
    except Exception as error:  # whatever a forward may raise
        return Failure(running.innermost, first_line(error)[:120])
    if recorder.of_full:
        name = min(recorder.of_full)
        said = f"a subnet uses the full model's {name}, which something keeps a reference to (a closure?)"
        return Failure(name.rpartition(".")[0], said)
    patched = {name for name, module in subnet.named_modules() if "forward" in vars(module)}
    steps: dict[str, list[Step]] = {}
    for step in trace.steps:
        if step.shape is not None and step.module not in patched:
            steps.setdefault(step.module, []).append(step)
    return next(_deviations(steps, recorder.steps, plan, labels), None)


def _deviations(
    steps: Mapping[str, Sequence[Step]], narrow: Mapping[str, Sequence[Step]], plan: Plan, labels: Held
) -> Iterator[Failure]:
    """Compare the operations of each module, in order.

    Where the forward looked at values before, a narrow net may go another way (what an expert does depends on the
    tokens it gets). There only operations that both ran are compared, and only dims with labels.
    """
    dealt = {axis.name for axis in plan.axes}
    for module, expected in steps.items():
        pairs = _paired(expected, narrow.get(module, ()))
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
            if not step.any_width and any(n not in (None, m) for n, m in zip(sizes, got.shape or (), strict=False)):
                wanted = tuple("any" if n is None else n for n in sizes)
                said = f"{step.name} gives shape {got.shape} in a narrow net, expected {wanted}"
                yield Failure(module, said, blamed)


def _sizes(step: Step, labels: Held) -> list[int | None]:
    """Return the size that each dim of a step's result has in the narrow net; None where it may be any."""
    assert step.shape is not None
    sizes: list[int | None] = [None if step.after_values else size for size in step.shape]
    for one in step.fields:
        for d in one.dims:
            if d < len(sizes):
                held = labels.held[one.ids].movedim(d, 0).reshape(one.ids.shape[d], -1).any(1)
                sizes[d] = int(held.sum())
    return sizes


_SAME_ELEMENTS = {"aten._unsafe_view": "aten.view", "aten._reshape_alias": "aten.view", "aten.clone": ""}
"""Operations that run or not depending on how elements lie in memory, and what each is compared as ("": nothing)."""


def _compared_as(step: Step) -> str:
    return _SAME_ELEMENTS.get(step.name, step.name)


def _paired(expected: Sequence[Step], got: Sequence[Step]) -> list[tuple[Step, Step]] | None:
    """Pair the operations of two runs of a module; None if they differ without having looked at values."""
    steps, others = list(filter(_compared_as, expected)), list(filter(_compared_as, got))
    names, their_names = list(map(_compared_as, steps)), list(map(_compared_as, others))
    if names == their_names:
        return list(zip(steps, others, strict=True))
    if not any(step.after_values for step in expected):
        return None
    blocks = difflib.SequenceMatcher(None, names, their_names, autojunk=False).get_matching_blocks()
    return [pair for a, b, n in blocks for pair in zip(steps[a : a + n], others[b : b + n], strict=True)]


def _is_in(plan: Plan, axis: Axis, module: str) -> bool:
    return bool(module) and any(name.startswith(f"{module}.") for name in plan.governed(axis))
