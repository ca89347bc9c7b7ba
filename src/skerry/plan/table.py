"""The plan: which indices of which tensor dims belong to which units.

A *unit* is the smallest thing dealt out (a neuron, a channel, a head, a block); an *axis* is a set of interchangeable
units. The plan is one table: for each dim of each dealt tensor, one unit id per index. It says nothing about workers:
a partition (``skerry.partitions``) decides in each round who holds a unit. A tensor that is not in the table is
*shared*: every worker has it whole.
"""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from skerry.choose import did_you_mean
from skerry.model.optimizer_state import parameter_of
from skerry.model.tensors import shapes_of
from skerry.plan.dims import Axis, DealtDim, numbered, once_per_units, renumbered, renumbered_units
from skerry.plan.from_rules import axes_and_dims
from skerry.plan.rules import Rules
from skerry.plan.warnings import bottleneck, lone_units
from skerry.whole_number import check_whole_number

Patch = Callable[[nn.Module, nn.Module], None]
"""``patch(narrow, full)`` changes what a narrow module keeps beside its tensors (``num_heads``, its ``forward``), so
that it fits them; ``full`` is the same module of the full model."""


@dataclass(frozen=True)
class Note:
    """Something that is not dealt out, and why."""

    what: str
    why: str


@dataclass(frozen=True, eq=False)
class Plan:
    """Which dims of which tensors belong to which units.

    Make one with ``skerry.discover``, ``Plan.from_rules`` or ``Plan.whole``; ``print`` shows it.

    Attributes:
        axes: the axes, in the order of their unit ids.
        dims: tensor name -> for each dim a ``DealtDim``, or None if it is not dealt out. Only tensors with a dealt dim
            are listed.
        shapes: the shape of every parameter and buffer of the model that the plan was made for.
        blocks: module name -> the unit that has the module and all its tensors whole. In a subnet without the unit the
            module is the identity and its tensors do not exist.
        scaled: parameter of a block -> a unit. Calibration multiplies the parameter by that unit's share of subnets.
        patches: pattern of module names -> function that makes a narrow module fit its tensors.
        numbers: module name -> path of a number that the module keeps (``num_heads``, ``config.num_heads``) -> the axis
            with which the number scales: in a subnet it is multiplied by the fraction of the axis's units.
        notes: what is not dealt out, and why.
        may_be_unassigned: whether units may have no holder in a round; their elements then need an owner rank
            (``exchange/owners.py``). Training sets it by the partition.

    Example:
        >>> from skerry.plan import In, Out
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> plan = Plan.from_rules(model, {"0": Out("hidden"), "2": In("hidden")})
        >>> [(axis.name, axis.num_units) for axis in plan.axes]
        [('hidden', 6)]
    """

    axes: tuple[Axis, ...]
    dims: Mapping[str, tuple[DealtDim | None, ...]]
    shapes: Mapping[str, torch.Size] = field(repr=False)
    blocks: Mapping[str, int] = field(default_factory=dict)
    scaled: Mapping[str, int] = field(default_factory=dict, repr=False)
    patches: Mapping[str, Patch] = field(default_factory=dict, repr=False)
    numbers: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    notes: tuple[Note, ...] = field(default=(), repr=False)
    may_be_unassigned: bool = False

    @property
    def num_units(self) -> int:
        """The number of units of all axes."""
        return sum(axis.num_units for axis in self.axes)

    def why_dependent(self, model: nn.Module) -> str | None:
        """Return, in words, why subnets of ``model`` are not networks of their own; None if they are.

        They are not if a parameter of two or more dims is on every worker (a stem, or a layer that reads or writes a
        residual stream), or if whole blocks are dealt out. Vectors on every worker do not count, such as biases, or
        attention vectors (1, heads, channels).
        """
        for block in self.blocks:
            return f"{block} is a block that other workers go on without"
        for name, parameter in model.named_parameters():
            if sum(size > 1 for size in parameter.shape) > 1 < parameter.shape[0] and name not in self.dims:
                return f"{name} is on every worker"
        return None

    def warnings(self, workers: int) -> tuple[str, ...]:
        """Return what is likely to end badly if the units are dealt evenly to ``workers``, with remedies.

        Training warns of the same, and of what depends on its length (docs/your-run.md).

        Args:
            workers: their number.

        Returns:
            A sentence per kind; none if nothing is known to be wrong.

        Raises:
            ValueError: ``workers`` is not a whole number of at least 1.

        Example:
            >>> from skerry.plan import In, Out
            >>> model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))
            >>> plan = Plan.from_rules(model, {"0": Out("middle"), "1": In("middle")})
            >>> plan.warnings(workers=4)[0][:66]
            "bottleneck: axis 'middle' has 8 units, and a subnet only 2, which "
        """
        check_whole_number("workers", workers, 1)
        smallest = [axis.num_units // workers for axis in self.axes]
        found = (bottleneck(self.axes, smallest), lone_units(self.axes, self.dims, smallest))
        return tuple(
            f"{text}; try ist with a core, fewer workers, or narrow with the axis whole (plan.without('{axis}'))"
            for axis, text in filter(None, found)
        )

    def between(self, name: str) -> bool:
        """Tell whether a tensor has units along two dims, so that parts of it lie between subnets."""
        return sum(dim is not None for dim in self.dims.get(name, ())) > 1

    def row(self, name: str, shape: torch.Size) -> tuple[DealtDim | None, ...]:
        """Return the table row of a full-size tensor, empty if none of its dims is dealt out.

        Optimizer state of the same shape as its parameter has the parameter's row; other state (step counts) has none.

        Args:
            name: of a tensor or its optimizer state.
            shape: its full size.
        """
        owner = parameter_of(name)
        return self.dims.get(owner, ()) if shape == self.shapes[owner] else ()

    def block_of(self, name: str) -> int | None:
        """Return the unit that has the tensor ``name`` (or its optimizer state) whole; None if it is in no block."""
        return next((unit for block, unit in self.blocks.items() if name.startswith(f"{block}.")), None)

    @classmethod
    def whole(cls, model: nn.Module) -> "Plan":
        """Return a plan that deals out nothing: every tensor is shared."""
        return cls((), {}, shapes_of(model))

    def only(self, *patterns: str) -> "Plan":
        """Return the plan with only the axes whose names match one of ``patterns``.

        Args:
            patterns: names of axes, in which ``*`` stands for anything (``"*.mlp"``).

        Raises:
            ValueError: a pattern matches no axis.
        """
        return self._keep([axis for axis in self.axes if self._matches(axis.name, patterns)])

    def without(self, *patterns: str) -> "Plan":
        """Return the plan without the axes that match ``patterns`` (see ``only``); every worker has their units."""
        matching = [axis for axis in self.axes if self._matches(axis.name, patterns)]
        return self._keep([axis for axis in self.axes if axis not in matching])

    def _matches(self, name: str, patterns: Sequence[str]) -> bool:
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(axis.name, pattern) for axis in self.axes):
                names = [axis.name for axis in self.axes]
                hint = did_you_mean(pattern, names)
                raise ValueError(f"'{pattern}' matches no axis{hint}; the plan's axes are {_few(names, 12) or 'none'}")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    def _keep(self, axes: Sequence[Axis]) -> "Plan":
        kept = numbered(axes)
        new_id = torch.full((self.num_units,), -1, dtype=torch.int32)
        for axis, new in zip(axes, kept, strict=True):
            new_id[axis.units] = torch.tensor(new.units, dtype=torch.int32)
        gone = tuple(Note(f"axis {axis.name}", "left out on request") for axis in self.axes if axis not in axes)
        return replace(
            self,
            axes=kept,
            dims=renumbered(self.dims, new_id),
            blocks=renumbered_units(self.blocks, new_id),
            scaled=renumbered_units(self.scaled, new_id),
            numbers=_only_of(self.numbers, {axis.name for axis in axes}),
            notes=self.notes + gone,
        )

    def __add__(self, other: "Plan") -> "Plan":
        """Return the plan that deals out what either plan does: two plans of one model, with different axes."""
        if not isinstance(other, Plan):
            return NotImplemented
        if odd := _first_difference(self.shapes, other.shapes):
            raise ValueError(
                f"{odd[0]}: one plan has {odd[1]}, the other {odd[2]}; only plans of one model can be added"
            )
        names = {axis.name for axis in self.axes}
        for axis in other.axes:
            if axis.name in names:
                raise ValueError(f"axis '{axis.name}' is in both plans; take it out of one with plan.without")
        shift = torch.arange(self.num_units, self.num_units + other.num_units, dtype=torch.int32)
        theirs = renumbered(other.dims, shift)
        dims = dict(self.dims)
        for name, row in theirs.items():
            pairs = zip(dims.get(name, (None,) * len(row)), row, strict=True)
            dims[name] = tuple(_both(name, d, a, b) for d, (a, b) in enumerate(pairs))
        return Plan(
            numbered((*self.axes, *other.axes)),
            dims,
            self.shapes,
            {**self.blocks, **renumbered_units(other.blocks, shift)},
            {**self.scaled, **renumbered_units(other.scaled, shift)},
            {**self.patches, **other.patches},
            {m: {**self.numbers.get(m, {}), **other.numbers.get(m, {})} for m in (*self.numbers, *other.numbers)},
            _notes_of_both(self, other),
        )

    @classmethod
    def from_rules(cls, model: nn.Module, rules: Rules, patches: Mapping[str, Patch] | None = None) -> "Plan":
        """Build the plan that ``rules`` describe.

        An axis has one unit per index of its ``Out`` dims, or the number that ``Heads`` gives. An ``In`` dim that is k
        times as long has k neighbouring indices per unit: a channel is H*W columns after a flatten, a head all its
        dims.

        Args:
            model: on meta or not; only names, types and shapes are used.
            rules: pattern of module names -> rule or list of rules: ``{"fc1": Out("h"), "fc2": In("h")}``.
            patches: pattern of module names -> function that makes a narrow module fit its tensors.

        Raises:
            ValueError: a rule matches nothing or cannot hold, sizes disagree, an axis is made but never read or read
                but never made, or a tied tensor has a rule under only one of its names.
        """
        axes, dims = axes_and_dims(model, rules)
        return cls(axes, dims, shapes_of(model), patches=dict(patches or {}))

    def check(self, model: nn.Module) -> None:
        """Raise ValueError, naming the tensor, unless ``model`` has exactly the tensors this plan was made for."""
        if odd := _first_difference(self.shapes, shapes_of(model)):
            raise ValueError(f"{odd[0]}: the model has {odd[2]}, the plan {odd[1]}; make the plan from this model")

    def digest(self) -> str:
        """Return a hash of axes, table, blocks and shapes: equal for plans that deal out the same."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr([(axis.name, axis.num_units) for axis in self.axes]).encode())
        digest.update(repr(sorted((name, tuple(shape)) for name, shape in self.shapes.items())).encode())
        digest.update(repr([sorted(self.blocks.items()), sorted(self.scaled.items())]).encode())
        digest.update(b"rests" if self.may_be_unassigned else b"")
        for name in sorted(self.dims):
            for d, dim in enumerate(self.dims[name]):
                if dim is not None:
                    digest.update(f"{name} {d} {dim.role}".encode() + dim.units.to(torch.int32).numpy().tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        """Return a table of the axes and their tensors, the share dealt out, and what is not dealt out and why."""
        numel = {name: shape.numel() for name, shape in self.shapes.items()}
        total = sum(numel.values())
        rows = [("axis", "kind", "units", "elements", "of")]
        for axis in self.axes:
            names = self.governed(axis)
            size = sum(numel[name] for name in names)
            short = [name.removeprefix(f"{axis.name}.") for name in names]
            rows.append((axis.name, axis.kind, f"{axis.num_units}", f"{size:,}", _few(short)))
        wide = [max(len(row[c]) for row in rows) for c in range(4)]
        lines = [
            f"{name:<{wide[0]}}  {kind:<{wide[1]}}  {units:>{wide[2]}}  {size:>{wide[3]}}  {names}"
            for name, kind, units, size, names in rows
        ]
        dealt = sum(size for name, size in numel.items() if name in self.dims or self.block_of(name) is not None)
        shared = sorted((n for n in numel if n not in self.dims and self.block_of(n) is None), key=lambda n: -numel[n])
        lines.append(f"dealt out: {dealt:,} of {total:,} elements ({dealt / max(1, total):.0%})")
        between = sum(numel[name] for name in self.dims if self.between(name))
        if between:
            share = f"{between / dealt:.0%}"
            lines.append(f"between two axes: {between:,} of them ({share}), of which n workers train 1/n in a round")
        if shared:
            lines.append(f"on every worker: {total - dealt:,} elements: {_few(shared)}")
        if self.numbers:
            lines.append("adapted in a subnet:")
            lines.extend(_starred(f"  {name or 'the model'}: {', '.join(own)}" for name, own in self.numbers.items()))
        if self.notes:
            lines.append("not dealt out, and why:")
            lines.extend(_starred(f"  {note.what}: {note.why}" for note in self.notes))
        return "\n".join(lines)

    def governed(self, axis: Axis) -> list[str]:
        """Return the names of the tensors that the units of ``axis`` have parts of."""
        own = torch.zeros(self.num_units, dtype=torch.bool)
        own[axis.units] = True
        touches = once_per_units(lambda dim: bool(dim.look_up(own, False).any()))
        names = [name for name, row in self.dims.items() if any(dim is not None and touches(dim) for dim in row)]
        return names + [n for n in self.shapes if n not in names and self.block_of(n) in axis.units]


def trained_in_blocks(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the trained parameters by name if the plan has blocks, which a worker may not have; else nothing."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad} if plan.blocks else {}


def _only_of(numbers: Mapping[str, Mapping[str, str]], axes: Container[str]) -> dict[str, dict[str, str]]:
    kept = {module: {path: axis for path, axis in own.items() if axis in axes} for module, own in numbers.items()}
    return {module: own for module, own in kept.items() if own}


def _starred(lines: Iterable[str]) -> list[str]:
    """Return the lines, with one for those that are the same for many layers."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(re.sub(r"\.\d+(?=\.|\b)", ".*", line), []).append(line)
    return [same[0] if len(same) == 1 else starred for starred, same in alike.items()]


def _both(name: str, d: int, a: DealtDim | None, b: DealtDim | None) -> DealtDim | None:
    if a is None or b is None:
        return a or b
    if a.role != b.role or bool(((a.units >= 0) & (b.units >= 0)).any()):
        raise ValueError(f"{name} dim {d}: dealt out by both plans; leave the axis out of one with plan.without")
    return DealtDim(torch.where(a.units >= 0, a.units, b.units), a.role)


def _notes_of_both(a: Plan, b: Plan) -> tuple[Note, ...]:
    dealt = {f"axis {axis.name}" for axis in (*a.axes, *b.axes)}
    return tuple(dict.fromkeys(note for note in (*a.notes, *b.notes) if note.what not in dealt))


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_difference(one: Mapping[str, torch.Size], other: Mapping[str, torch.Size]) -> tuple[str, str, str] | None:
    """Return the name of the first tensor whose shapes differ, and its shapes in words; None if all are equal."""
    for name in [*one, *other]:
        shapes = one.get(name), other.get(name)
        if shapes[0] != shapes[1]:
            a, b = ("no such tensor" if shape is None else f"shape {tuple(shape)}" for shape in shapes)
            return name, a, b
    return None
