"""The trial: run a narrow net and compare each of its operations with the same one of the full net.

A width can be written into a ``forward`` in ways that no operation shows. ``view(B, T, 4, -1)`` runs on any width, but
its heads are then not the heads of the full model; ``x / x.shape[-1]`` divides by another number. So the result of each
operation must have the size that the plan gives it, and the numbers it was called with must be the same.
"""

import difflib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skerry.discovery.forward_contexts import InEinsum, Running, first_line, without_side_effects
from skerry.discovery.invariant_numbers import InvariantNumbers, written_by
from skerry.discovery.trace import Step, Trace
from skerry.model.inputs import Inputs, call
from skerry.plan.dims import Axis
from skerry.plan.table import Plan
from skerry.subnet import cut_arguments
from skerry.subnet.extract import extract
from skerry.subnet.written_sizes import Place


@dataclass(frozen=True)
class Failure:
    """Where a narrow net went wrong, how, and the axes of what the operation there worked on.

    ``place`` is that operation's place among those of the module, and ``number`` that among all of the net, -1 if it is
    not known. ``all_axes`` are those of all operations that went wrong, None if the net did not run to its end.
    """

    module: str
    said: str
    axes: frozenset[str] = frozenset()
    place: int = -1
    number: int = -1
    all_axes: frozenset[str] | None = None


class _Recorder(TorchDispatchMode):
    """Records the operations that a narrow net runs, by module."""

    def __init__(self, running: Running, full: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.full = {id(p): name for name, p in full.named_parameters()}
        self.of_full: set[str] = set()  # parameters of the full model that the narrow net used
        self.numbers = InvariantNumbers()
        self.einsum = InEinsum()
        self.steps: dict[str, list[Step]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.of_full |= {self.full[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self.full}
        outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if outs and not self.einsum.running:
            numbers, extremes = self.numbers.of(func, args, kwargs, outs, written_by(func, args, kwargs))
            module, shape = self.running.innermost, tuple(outs[0].shape)
            step = Step(str(func.overloadpacket), module, numbers=numbers, extremes=extremes, shape=shape)
            self.steps.setdefault(module, []).append(step)
        return result


@dataclass(eq=False)
class Trial:
    """Narrow nets of one model, on the same inputs, compared with the traces of the full net.

    Attributes:
        model: the full model.
        inputs: example inputs.
        everything: the plan that the traces allow.
        traces: of the full model on these inputs, in evaluation mode and, if it runs, in training mode.
        unit_of_label: for each label the id of its unit in ``everything``, -1 for labels that are not dealt out.
        num_forwards: of narrow nets, so far.
    """

    model: nn.Module
    inputs: Inputs
    everything: Plan
    traces: Sequence[Trace]
    unit_of_label: Tensor
    num_forwards: int = 0
    steps: list[dict[str, list[Step]]] = field(init=False)
    """For each trace the operations by module, without those that only move elements in memory."""

    def __post_init__(self) -> None:
        self.steps = []
        for trace in self.traces:
            by_module: dict[str, list[Step]] = {}
            for step in trace.steps:
                if step.shape is not None and _compared_as(step):
                    by_module.setdefault(step.module, []).append(step)
            self.steps.append(by_module)
        number = torch.full((self.everything.num_units + 1,), -1)
        for k, axis in enumerate(self.everything.axes):
            number[axis.units] = k
        self._axis_of_label = number[self.unit_of_label]

    def axes_at(self, step: Step) -> frozenset[str]:
        """Return the axes of what an operation worked on."""
        fields = (*step.fields, *step.given)
        numbers = {int(k) for one in fields for k in torch.unique(self._axis_of_label[one.ids])} - {-1}
        return frozenset(self.everything.axes[k].name for k in numbers)

    def axes_in(self, module: str) -> frozenset[str]:
        """Return the axes that the operations of a module itself worked on, without those of modules in it.

        A module that ran none is used by the one it is in.
        """
        steps = [step for by_module in self.steps for step in by_module.get(module, ())]
        if module and not steps:
            return self.axes_in(module.rpartition(".")[0])
        return frozenset().union(*map(self.axes_at, steps))

    def ran(self, module: str) -> bool:
        """Tell whether a module ran operations itself."""
        return any(module in by_module for by_module in self.steps)

    def sizes_in(self, module: str, axis: Axis, widths: Container[int]) -> list[Place]:
        """Return where the forward of a module gives a tensor a size, one of ``widths``, along which an axis lies.

        A unit's indices must be neighbours there: they are not where a dim is made of others, such as the batch, whose
        size may be another next time. The first dim mostly is the batch, but not that of a weight.
        """
        number = [a.name for a in self.everything.axes].index(axis.name)
        found = []
        for trace, by_module in zip(self.traces, self.steps, strict=True):
            given = trace.sizes.get(module, {})
            for step in by_module.get(module, ()):
                for one in step.fields if given and step.name.split(".")[1] in _GIVE_SIZES else ():
                    for d in one.dims - (frozenset() if one.origins else {0}):
                        place = one.ids.shape[d], d, one.ids.dim()
                        labels = one.ids.movedim(d, 0).reshape(place[0], -1)[:, 0]
                        mine = bool((self._axis_of_label[labels] == number).all())
                        by_it = any(step.number - before in (0, 1) for before in given.get(place, ()))  # a copy, a view
                        if mine and place[0] in widths and by_it:
                            changes = self.unit_of_label[labels].diff().count_nonzero()
                            found += [place] if int(changes) == axis.num_units - 1 else []
        return list(dict.fromkeys(found))

    def arguments_in(self, module: str, axis: Axis) -> list[str]:
        """Return the names of the cuts of what ``module`` gets with a part for each unit of ``axis``."""
        found = []
        start = next(one.start for one in self.everything.axes if one.name == axis.name)
        for name, argument, dim, labels in (one for trace in self.traces for one in trace.arguments):
            ids = self.unit_of_label[labels] - start
            if name == module and int(ids[0]) == 0:
                each = int((ids != 0).nonzero()[0]) if bool(ids.any()) else len(ids)
                units = torch.arange(axis.num_units).repeat_interleave(each)
                if len(ids) % len(units) == 0 and torch.equal(ids, units.repeat(len(ids) // len(units)).to(ids.dtype)):
                    found.append(cut_arguments.name_of(argument, dim, each))
        return list(dict.fromkeys(found))

    def run(self, plan: Plan) -> Failure | None:
        """Run a narrow net of ``plan``, which has some axes of ``everything``; None if it did what the traces say."""
        held = self._held(plan)
        for number, expected in enumerate(self.steps):
            failure = self._run(plan, expected, held, training=number > 0)
            if failure is not None:
                return failure
        return None

    def _run(self, plan: Plan, expected: Mapping[str, list[Step]], held: Tensor, training: bool) -> Failure | None:
        self.num_forwards += 1
        subnet = extract(self.model, plan, some_units(plan), copy_shared=False)
        running = Running(subnet)
        recorder = _Recorder(running, self.model)
        raised = None
        try:
            with without_side_effects(subnet, training), running.tracked(), recorder, recorder.einsum:
                call(subnet, self.inputs)
        except Exception as error:  # whatever a forward may raise
            raised = running.innermost, first_line(error)[:120]
        if recorder.of_full:
            name = min(recorder.of_full)
            said = f"a subnet uses the full model's {name}, which something keeps a reference to (a closure?)"
            return Failure(name.rpartition(".")[0], said)
        patched = {n for n, m in subnet.named_modules() if "forward" in vars(m) and not hasattr(m, "sizes_in_forward")}
        dealt = {axis.name for axis in plan.axes}
        found: list[Failure] = []
        for module, steps in expected.items():
            if module in patched:
                continue
            got = [step for step in recorder.steps.get(module, ()) if _compared_as(step)]
            deviation = next(self._deviations(module, steps, got, held, dealt, whole=raised is None), None)
            if deviation is not None:
                found.append(deviation)
        if found:
            everywhere = None if raised else frozenset().union(*(failure.axes for failure in found))
            return replace(min(found, key=lambda failure: failure.number), all_axes=everywhere)
        if raised is None:
            return None
        module, said = raised
        place = len([step for step in recorder.steps.get(module, ()) if _compared_as(step)])
        at = expected.get(module, ())[place : place + 1]
        number = at[0].number if at else -1
        return Failure(module, said, frozenset().union(*map(self.axes_at, at)) & dealt, place, number)

    def _held(self, plan: Plan) -> Tensor:
        """Return for each label whether the narrow net of ``plan`` has it."""
        dealt = {axis.name for axis in plan.axes}
        held = torch.ones(self.everything.num_units + 1, dtype=torch.bool)  # the last is for labels not dealt out
        for axis in self.everything.axes:
            held[axis.units] = axis.name not in dealt
        held[some_units(self.everything)] = True
        return held[self.unit_of_label]

    def _deviations(
        self, module: str, steps: Sequence[Step], got: Sequence[Step], held: Tensor, dealt: set[str], whole: bool
    ) -> Iterator[Failure]:
        """Compare the operations of a module in order; yield where they deviate.

        Where the forward looked at values before, a narrow net may go another way (what an expert does depends on the
        tokens it gets). There only operations that both ran are compared, and only dims with labels. A run that ended
        in an error (not ``whole``) has fewer operations.
        """
        pairs = _paired(steps if whole else steps[: len(got)], got)
        if pairs is None:
            names = zip([*map(_compared_as, steps), ""], [*map(_compared_as, got), ""], strict=False)
            place = next((k for k, (a, b) in enumerate(names) if a != b), 0)
            step = steps[min(place, len(steps) - 1)]
            said = "a narrow net does other operations"
            yield Failure(module, said, self.axes_at(step) & dealt, place, step.number)
            return
        for place, (step, other) in enumerate(pairs):
            said = ""
            numbers, theirs = step.numbers, other.numbers
            if step.extremes and other.extremes:
                numbers, theirs = numbers + step.extremes, theirs + other.extremes
            if numbers != theirs:
                said = f"{step.name} by {list(theirs)} instead of {list(numbers)} in a narrow net"
            sizes = _sizes(step, held)
            if not step.any_width and any(n not in (None, m) for n, m in zip(sizes, other.shape or (), strict=False)):
                wanted = tuple("any" if n is None else n for n in sizes)
                said = said or f"{step.name} gives shape {other.shape} in a narrow net, expected {wanted}"
            if said:
                yield Failure(module, said, self.axes_at(step) & dealt, place, step.number)


def some_units(plan: Plan, drawn: torch.Generator | None = None) -> Tensor:
    """Return the ids of about 2 of 11 units of each axis: a small net, in which halves and thirds rarely fit.

    They are at the same places of all axes of one size or, with a generator, at places ``drawn`` for each axis.

    At least two of each axis that has more than two, because torch lays out dims with one index differently. Of experts
    the second half, because a router chooses several of them.
    """
    units = []
    for axis in plan.axes:
        ids = torch.arange(axis.num_units)
        some = ids[len(ids) // 2 :] if axis.kind == "experts" else ids[torch.isin(ids % 11, torch.tensor([1, 5]))]
        if len(some) < 2 < axis.num_units:
            some = torch.tensor([1, 2] if axis.num_units > 3 else [0, 2])
        if drawn is not None:
            some = torch.randperm(len(ids), generator=drawn)[: len(some)].sort().values
        units.append(axis.start + some)
    return torch.cat(units) if units else torch.empty(0, dtype=torch.int64)


def _sizes(step: Step, held: Tensor) -> list[int | None]:
    """Return the size that each dim of a step's result has in the narrow net; None where it may be any."""
    assert step.shape is not None
    sizes: list[int | None] = [None if step.after_values else size for size in step.shape]
    for one in step.fields:
        for d in one.dims:
            if d < len(sizes):
                sizes[d] = int(held[one.ids].movedim(d, 0).reshape(one.ids.shape[d], -1).any(1).sum())
    return sizes


_GIVE_SIZES = ("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "split", "split_with_sizes", "zeros",
               "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full")  # fmt: skip

_SAME_ELEMENTS = {"aten._unsafe_view": "aten.view", "aten._reshape_alias": "aten.view", "aten.clone": ""}
"""Operations that run or not depending on how elements lie in memory, and what each is compared as ("": nothing)."""


def _compared_as(step: Step) -> str:
    return _SAME_ELEMENTS.get(step.name, step.name)


def _paired(steps: Sequence[Step], others: Sequence[Step]) -> list[tuple[Step, Step]] | None:
    """Pair the operations of two runs of a module; None if they differ without having looked at values."""
    names, their_names = list(map(_compared_as, steps)), list(map(_compared_as, others))
    if names == their_names:
        return list(zip(steps, others, strict=True))
    made, their_made = ([step for step in run if step.extremes] for run in (steps, others))
    if bool(made) != bool(their_made):  # constants that only one of the two has made, as the other finds them kept
        return _paired([s for s in steps if not s.extremes], [s for s in others if not s.extremes])
    if not any(step.after_values for step in steps):
        return None
    blocks = difflib.SequenceMatcher(None, names, their_names, autojunk=False).get_matching_blocks()
    return [pair for a, b, n in blocks for pair in zip(steps[a : a + n], others[b : b + n], strict=True)]
