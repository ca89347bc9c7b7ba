"""Hard-coded widths: where a narrow net does not run as planned, adapt the numbers its modules keep, or leave axes whole.

Most attention is written for ``self.num_heads``. Such a number is scaled by what is left of the axis, tentatively: by
name first (numbers of heads), then those that equal the axis's number of units or the width of a tensor. What makes the
trial of the axis pass is kept, and is done in all modules of the class. A trial costs a forward or two, so each step
below asks only where the failure points to, and there is an end to it: what has not been found after
``_MOST_FORWARDS`` is left whole.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from skerry.discovery.narrow_trial import Failure, Trial
from skerry.plan.dims import Axis
from skerry.plan.table import Note, Plan
from skerry.subnet.adapters import remedy
from skerry.subnet.kept_numbers import kept_numbers

_MOST_FORWARDS = 24

Numbers = dict[str, dict[str, str]]
"""``Plan.numbers``: module -> path -> axis."""


def drop_hard_coded(trial: Trial, plan: Plan) -> Plan:
    """Return the plan with numbers adapted, and without the axes that cannot be narrow because of some ``forward``.

    Args:
        trial: of the model.
        plan: what the traces allow. Each axis that is left out gets a note.
    """
    in_vain: set[tuple[type, int]] = set()  # classes and places in their forward where no number helped
    while plan.axes and (failure := trial.run(plan)) is not None:
        blamed = _to_blame(trial, plan, failure)
        if len(blamed) == 1 and trial.num_forwards < _MOST_FORWARDS:
            (axis,) = blamed
            alone = trial.run(plan.only(axis))
            if alone is not None:
                failure = alone
                kind = (type(trial.model.get_submodule(alone.module)), alone.place or 0)
                if kind not in in_vain:
                    numbers = _adapted(trial, plan.only(axis), alone)
                    if numbers is not None:
                        plan = replace(plan, numbers=_everywhere(trial, plan, numbers))
                        continue
                    in_vain.add(kind)
                blamed |= _siblings(trial, plan, axis, alone)
        where = failure.module or "the model's own forward"
        what_to_do = remedy(failure.module, trial.model.get_submodule(failure.module))
        notes = [Note(f"axis {name}", f"hard-coded width in {where} ({failure.said}); {what_to_do}") for name in blamed]
        plan = replace(plan.without(*blamed), notes=plan.notes + tuple(notes))
    return plan


def _to_blame(trial: Trial, plan: Plan, failure: Failure) -> set[str]:
    """Return an axis that makes the trial fail; several if that cannot be found out in a few forwards."""
    inside = {axis.name for axis in plan.axes if _is_in(plan, axis, failure.module)}
    suspects = sorted(failure.axes or inside or {axis.name for axis in plan.axes})
    if not failure.axes and len(suspects) < len(plan.axes) and trial.run(plan.only(*suspects)) is None:
        suspects = [axis.name for axis in plan.axes if axis.name not in suspects]
    while len(suspects) > 1 and trial.num_forwards < _MOST_FORWARDS:
        half = suspects[: len(suspects) // 2]
        suspects = half if trial.run(plan.only(*half)) is not None else suspects[len(half) :]
    return set(suspects)


def _adapted(trial: Trial, plan: Plan, failure: Failure | None) -> Numbers | None:
    """Return the numbers to scale so that the trial of ``plan``, which has one axis, passes; None if none do."""
    (axis,) = plan.axes
    done: set[type] = set()
    seen: list[Numbers] = [{}]
    while failure is not None:
        better = None
        for module in _with_those_around(failure.module):
            kind = type(trial.model.get_submodule(module))
            if kind in done:
                continue
            for paths in _candidates(trial, plan, axis, module):
                if trial.num_forwards >= _MOST_FORWARDS:
                    return None
                numbers = {**plan.numbers, **_of_class(trial, kind, paths, {axis.name: axis.num_units})}
                if numbers in seen:
                    continue
                seen.append(numbers)
                tried = replace(plan, numbers=numbers)
                again = trial.run(tried)
                if again is None or (again.module, again.place) != (failure.module, failure.place):
                    better = tried, again, kind
                    if again is None or type(trial.model.get_submodule(again.module)) is not kind:
                        break
            if better is not None:
                break
        if better is None:
            return None
        plan, failure, kind = better
        done.add(kind)
    return {module: dict(own) for module, own in plan.numbers.items()}


def _with_those_around(module: str) -> Iterator[str]:
    """Yield the name of a module, and those of the modules it is in, up to the model's own, ""."""
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
    seen: list[set[str]] = [set()]
    for paths in (heads, heads + wide, units, units + wide, units + heads + wide, wide):
        if set(paths) not in seen:
            seen.append(set(paths))
            yield list(dict.fromkeys(paths))


def _widths(plan: Plan, axis: Axis) -> set[int]:
    """Return how many indices of an axis the tensors have in a dim, and halves and thirds of that (fused layers)."""
    found = set()
    for row in plan.dims.values():
        for dim in row:
            size = 0 if dim is None else int(((dim.units >= axis.start) & (dim.units < axis.units.stop)).sum())
            found |= {size // parts for parts in (1, 2, 3) if size % (parts * axis.num_units) == 0}
    return found - {0}


def _of_class(trial: Trial, kind: type, paths: Iterable[str], units: Mapping[str, int]) -> Numbers:
    """Return the numbers at ``paths`` of all modules of class ``kind`` that work on an axis of ``units``."""
    found: Numbers = {}
    for name, module in trial.model.named_modules():
        axes = sorted(trial.axes_in(name) & set(units)) if type(module) is kind else []
        numbers = kept_numbers(module) if axes else {}
        own = {p: a for p in paths if p in numbers for a in axes[:1] if numbers[p] % units[a] == 0}
        if own:
            found[name] = own
    return found


def _everywhere(trial: Trial, plan: Plan, numbers: Numbers) -> Numbers:
    """Return the plan's numbers with ``numbers``, and the same paths in other modules of the same classes."""
    units = {axis.name: axis.num_units for axis in plan.axes if axis.kind == "heads"}
    found: Numbers = {}
    for name, own in numbers.items():
        found.update(_of_class(trial, type(trial.model.get_submodule(name)), own, units))
    return {**found, **plan.numbers, **numbers}


def _siblings(trial: Trial, plan: Plan, blamed: str, failure: Failure) -> set[str]:
    """Return axes that fail in the same place of the same module of other layers as ``blamed`` does."""
    if failure.place is None:
        return set()
    others: set[str] = set()
    for by_module in trial.steps:
        for name, steps in by_module.items():
            if _starred(name) == _starred(failure.module):
                others |= set().union(*map(trial.axes_at, steps[failure.place : failure.place + 1]))
    others = {axis.name for axis in plan.axes if axis.name in others and _starred(axis.name) == _starred(blamed)} - {blamed}
    again = trial.run(plan.only(*others)) if others else None
    same = again is not None and (_starred(again.module), again.place) == (_starred(failure.module), failure.place)
    return others if same else set()


def _starred(name: str) -> str:
    """Return a name with a * for each number: the same for the same module of all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", name)


def _is_in(plan: Plan, axis: Axis, module: str) -> bool:
    return bool(module) and any(name.startswith(f"{module}.") for name in plan.governed(axis))
