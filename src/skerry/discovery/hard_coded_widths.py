"""Hard-coded widths: where a narrow net does not run as planned, adapt numbers of its modules, or leave axes whole.

Most attention is written for ``self.num_heads``. Such a number is scaled by what is left of the axis, tentatively: by
name first (numbers of heads), then those that equal the axis's number of units or the width of a tensor, then sizes
that the forward takes from elsewhere (``subnet/written_sizes.py``). What makes the trial of the axis pass is kept, and
is done in all modules of the class. A trial costs a forward or two, so each step below asks only where the failure
points to, and there is an end to it: what has not been found after ``_MOST_FORWARDS`` is left whole.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from skerry.discovery.narrow_trial import Failure, Trial
from skerry.plan.dims import Axis, DealtDim
from skerry.plan.table import Note, Plan
from skerry.subnet import cut_arguments
from skerry.subnet.adapters import remedy
from skerry.subnet.kept_numbers import kept_numbers
from skerry.subnet.written_sizes import PREFIX, name_of

_MOST_FORWARDS = 24

Numbers = Mapping[str, Mapping[str, str]]
"""``Plan.numbers``: module -> path -> axis."""


def drop_hard_coded(trial: Trial, plan: Plan) -> Plan:
    """Return the plan with numbers adapted, and without the axes that cannot be narrow because of some ``forward``.

    Args:
        trial: of the model.
        plan: what the traces allow. Each axis that is left out gets a note.
    """
    in_vain: set[tuple[type, int, str]] = set()  # classes, places in their forward, kinds of units: no number helped
    while plan.axes and (failure := trial.run(plan)) is not None:
        blamed = _to_blame(trial, plan, failure)
        if len(blamed) == 1 and trial.num_forwards < _MOST_FORWARDS:
            (axis,) = blamed
            alone = trial.run(plan.only(axis))
            if alone is None:  # it fails beside another one only, which may be the wrong one
                blamed = _to_blame(trial, plan, failure, beside=axis)
                axis = min(blamed)
                alone = trial.run(plan.only(axis)) if len(blamed) == 1 else None
            if alone is not None:
                failure = alone
                kind = (type(trial.model.get_submodule(alone.module)), alone.place, _kind_of(plan, axis))
                if kind not in in_vain:
                    adapted = _adapted(trial, plan.only(axis), alone)
                    if adapted is not None:
                        plan = replace(plan, numbers=_everywhere(trial, plan, axis, adapted.numbers))
                        continue
                    in_vain.add(kind)
                blamed |= _siblings(trial, plan, axis, alone)
        where = failure.module or "the model's own forward"
        what_to_do = remedy(failure.module, trial.model.get_submodule(failure.module))
        notes = [Note(f"axis {name}", f"hard-coded width in {where} ({failure.said}); {what_to_do}") for name in blamed]
        plan = replace(plan.without(*blamed), notes=plan.notes + tuple(notes))
    return plan


def _to_blame(trial: Trial, plan: Plan, failure: Failure, beside: str = "") -> set[str]:
    """Return an axis that makes the trial fail (``beside`` another); several if it is not found in a few forwards."""
    names = {axis.name for axis in plan.axes} - {beside}
    suspects = sorted(failure.axes - {beside} or {a.name for a in plan.axes if _is_in(plan, a, failure.module)} & names)
    others = sorted(names - set(suspects))

    def fails(axes: Iterable[str]) -> bool:
        return trial.run(plan.only(*axes, *filter(None, [beside]))) is not None

    if not failure.axes - {beside} and others and not (suspects and fails(suspects)):
        suspects = others
    while len(suspects) > 1 and trial.num_forwards < _MOST_FORWARDS:
        half = suspects[: len(suspects) // 2]
        suspects = half if fails(half) else suspects[len(half) :]
    return set(suspects) or {beside}


def _adapted(trial: Trial, plan: Plan, failure: Failure, done: frozenset[str] = frozenset()) -> Plan | None:
    """Return ``plan``, which has one axis, with numbers with which its trial passes; None if none are found.

    Numbers of one class at a time are tried, and others on top of those with which the net comes further: also of
    another module of the class, which may read the units that the first one makes.
    """
    (axis,) = plan.axes
    seen: list[object] = [plan.numbers]
    for module in _with_those_around(trial, failure.module):
        kind = type(trial.model.get_submodule(module))
        for paths in _candidates(trial, plan, axis, module) if module not in done else ():
            tried = replace(plan, numbers=_merged(_of_class(trial, plan, kind, paths, [axis]), plan.numbers))
            if tried.numbers in seen or trial.num_forwards >= _MOST_FORWARDS:
                continue
            seen.append(tried.numbers)
            again = trial.run(tried)
            if again is None:
                return tried
            if again.number > failure.number:
                found = _adapted(trial, tried, again, done | {module})
                if found is not None:
                    return found
    return None


def _with_those_around(trial: Trial, module: str) -> Iterator[str]:
    """Yield the name of a module, of those in it that ran nothing themselves, and of those it is in, up to ""."""
    yield module
    for name, _ in trial.model.get_submodule(module).named_children():
        inner = f"{module}.{name}" if module else name
        if not trial.ran(inner):
            yield inner
    module = module.rpartition(".")[0]
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _candidates(trial: Trial, plan: Plan, axis: Axis, module: str) -> Iterator[list[str]]:
    """Yield lists of paths of numbers to scale in a module, the most likely first."""
    numbers = {p: n for p, n in kept_numbers(trial.model.get_submodule(module)).items() if n % axis.num_units == 0}
    widths = _widths(plan, axis)
    of_one = [p for p in numbers if re.search(r"dim|size|width|channel", p.rpartition(".")[2])]
    heads = [p for p in numbers if "head" in p.rpartition(".")[2] and p not in of_one]
    wide = [p for p, n in numbers.items() if n in widths and not ("head" in p and p in of_one)]
    units = [p for p, n in numbers.items() if n == axis.num_units]
    arguments = [cut_arguments.PREFIX] if trial.arguments_in(module, axis) else []  # these must be cut
    seen: list[set[str]] = [set()]
    for paths in (heads, heads + wide, [PREFIX], units, units + wide, wide, [PREFIX, *heads], [PREFIX, *wide]):
        paths = [*paths, *arguments]
        if set(paths) not in seen:
            seen.append(set(paths))
            yield list(dict.fromkeys(paths))


def _widths(plan: Plan, axis: Axis) -> set[int]:
    """Return how many indices of an axis the tensors have in a dim, and halves and thirds of that (fused layers)."""
    found = set()
    for row in plan.dims.values():
        for dim in row:
            size = 0 if dim is None else int(_has(dim, axis).sum())
            found |= {size // parts for parts in (1, 2, 3) if size % (parts * axis.num_units) == 0}
    return found - {0}


def _has(dim: DealtDim, axis: Axis) -> Tensor:
    return (dim.units >= axis.start) & (dim.units < axis.units.stop)


def _of_class(trial: Trial, plan: Plan, kind: type, paths: Iterable[str], axes: Iterable[Axis]) -> Numbers:
    """Return the numbers at ``paths`` of all modules of class ``kind`` that work on one of ``axes``.

    The path ``PREFIX`` stands for all sizes along which the axis lies in a module's forward, and that of
    ``cut_arguments`` for all arguments with a part for each unit.
    """
    found = {}
    for name, module in trial.model.named_modules():
        own: dict[str, str] = {}
        inside = trial.axes_in(name) if type(module) is kind else frozenset()
        for axis in (axis for axis in axes if axis.name in inside):
            numbers = kept_numbers(module)
            for path in paths:
                if path == PREFIX:
                    places = trial.sizes_in(name, axis, _widths(plan, axis) | {axis.num_units})
                    own.update({name_of(place): axis.name for place in places})
                elif path == cut_arguments.PREFIX:
                    own.update(dict.fromkeys(trial.arguments_in(name, axis), axis.name))
                elif numbers.get(path, 1) % axis.num_units == 0 and _may_be(trial, plan, axis, name, path):
                    own.setdefault(path, axis.name)
        if own:
            found[name] = own
    return found


def _may_be(trial: Trial, plan: Plan, axis: Axis, module: str, path: str) -> bool:
    """Return whether a number named after inputs or outputs can be that of an axis, by who makes and reads it."""
    inside = (f"{module}.{name}".removeprefix(".") for name, _ in trial.model.get_submodule(module).named_parameters())
    rows = (plan.dims.get(name, ()) for name in inside)
    roles = {dim.role for row in rows for dim in row if dim is not None and bool(_has(dim, axis).any())}
    other = r"(^|_)c?out(put|_|$)" if "in" in roles else r"(^|_)c?in(put|_|$)"
    return not roles or not re.search(other, path)


def _everywhere(trial: Trial, plan: Plan, adapted: str, numbers: Numbers) -> Numbers:
    """Return the plan's numbers with ``numbers``, and the same paths in other modules of the same classes."""
    alike = [axis for axis in plan.axes if axis.kind == "heads" or _starred(axis.name) == _starred(adapted)]
    found: dict[str, Mapping[str, str]] = {}
    for name, own in numbers.items():
        paths = dict.fromkeys(
            next((prefix for prefix in (PREFIX, cut_arguments.PREFIX) if path.startswith(prefix)), path) for path in own
        )
        found.update(_of_class(trial, plan, type(trial.model.get_submodule(name)), paths, alike))
    return _merged(found, plan.numbers, numbers)


def _merged(*several: Numbers) -> Numbers:
    """Return the numbers of all; the last counts."""
    names = dict.fromkeys(name for one in several for name in one)
    return {name: {path: axis for one in several for path, axis in one.get(name, {}).items()} for name in names}


def _siblings(trial: Trial, plan: Plan, blamed: str, failure: Failure) -> set[str]:
    """Return axes that fail in the same place of the same module of other layers as ``blamed`` does."""
    if failure.number < 0:
        return set()
    others: set[str] = set()
    for by_module in trial.steps:
        for name, steps in by_module.items():
            if _starred(name) == _starred(failure.module):
                others |= set().union(*map(trial.axes_at, steps[failure.place : failure.place + 1]))
    kind = _starred(blamed), _kind_of(plan, blamed)
    others = {a.name for a in plan.axes if a.name in others and (_starred(a.name), a.kind) == kind} - {blamed}
    again = trial.run(plan.only(*others)) if others else None
    same = again is not None and (_starred(again.module), again.place) == (_starred(failure.module), failure.place)
    if again is None or not same:
        return set()
    return others if again.all_axes is None else others & again.all_axes


def _kind_of(plan: Plan, axis: str) -> str:
    return next(one.kind for one in plan.axes if one.name == axis)


def _starred(name: str) -> str:
    """Return a name with a * for each number: the same for the same module of all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", name)


def _is_in(plan: Plan, axis: Axis, module: str) -> bool:
    return bool(module) and any(name.startswith(f"{module}.") for name in plan.governed(axis))
