"""Trace: run a model once and collect the constraints that each operation puts on labels.

The forward runs for real, in eager mode, on the example inputs. Nothing is compiled or exported, so any model that runs
can be traced. A ``TorchDispatchMode`` sees every operation with the tensors it works on. The rules that say what an
operation demands are in ``operations``.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from skerry.discovery.argument_labels import Arguments
from skerry.discovery.constraints import Constraints
from skerry.discovery.forward_contexts import InEinsum, Running, first_line, without_side_effects
from skerry.discovery.index_labels import Field, Labels, Origin
from skerry.discovery.invariant_numbers import InvariantNumbers, written_by
from skerry.discovery.operations.operation import Operation, pin_everything, wide_dims
from skerry.discovery.operations.rules import rule_of
from skerry.model.in_words import CHOOSE_COLUMNS
from skerry.model.inputs import Inputs, call, tensors_of
from skerry.model.tensors import dense_buffers
from skerry.subnet.written_sizes import Place, SizesGiven


class ForwardRefused(ValueError):
    """The model's forward does something that no subnet can reproduce."""


@dataclass(frozen=True, eq=False)
class Step:
    """An operation that ran.

    Attributes:
        name: the operation's.
        module: name of the module that ran it.
        reads: the memories it read, by number; two forwards together share no numbers.
        writes: the memories it wrote.
        fields: the labels of its first result.
        given: the labels of what it read.
        numbers: what it was given, as ``InvariantNumbers`` found; they must be the same in a narrow net.
        extremes: of a constant result, if it is known to be one; these, too.
        known: whether there is a rule for it.
        shape: of its first result, None for dims that are broadcast; None if there is no result, or within an einsum.
        any_width: whether the result fits any width (``Labels.uniform``).
        after_values: whether an earlier operation looked at values, so that a narrow net may go another way.
        number: its place among all operations of the forward.
    """

    name: str
    module: str
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    fields: tuple[Field, ...] = ()
    given: tuple[Field, ...] = ()
    numbers: tuple[float, ...] = ()
    extremes: tuple[float, ...] = ()
    known: bool = True
    shape: tuple[int | None, ...] | None = None
    any_width: bool = False
    after_values: bool = False
    number: int = 0


@dataclass
class Trace:
    """What one forward, or two together, have shown.

    Attributes:
        constraints: what the operations demand of labels.
        steps: the operations, in order; the last is the model's output.
        live: for each step whether an output depends on it.
        origins: for each labelled tensor the labels of each of its dims, None for a dim without labels.
        broadcast: the labels of dims along which a tensor was broadcast, by the number of the broadcast.
        picked: the labels of tensors of which places were picked, by the number of the pick.
        arguments: (module, argument, dim, its labels): of tensors that modules get and that are made of numbers alone.
        sizes: for each module where its forward gives a tensor a size, with the numbers of the next operations.
        num_labels: the number of labels, with label 0.
        used: the labelled tensors that an output depends on.
        looked_at_values: the modules that looked at values.
    """

    constraints: Constraints
    steps: list[Step]
    live: list[bool] = field(default_factory=list)
    origins: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    broadcast: dict[Origin, Tensor] = field(default_factory=dict)
    picked: dict[Origin, Tensor] = field(default_factory=dict)
    arguments: list[tuple[str, str, int, Tensor]] = field(default_factory=list)
    sizes: dict[str, dict[Place, set[int]]] = field(default_factory=dict)
    num_labels: int = 1
    used: frozenset[str] = frozenset()
    looked_at_values: list[str] = field(default_factory=list)

    def __add__(self, other: "Trace") -> "Trace":
        """Return what two forwards of one model demand together; ``other`` began after this one, with its labels."""
        a, b, shift = self.constraints, other.constraints, len(self.steps)
        constraints = Constraints(
            edges=a.edges + [replace(edge, op=edge.op + shift) for edge in b.edges],
            outermost=a.outermost + [(ids, op + shift) for ids, op in b.outermost],
            even_cuts=a.even_cuts + [(ids, dim, ends, op + shift) for ids, dim, ends, op in b.even_cuts],
            roles=a.roles + [(origin, role, op + shift) for origin, role, op in b.roles],
            heads=a.heads + b.heads,
            preferred=a.preferred + b.preferred,
        )
        steps, live, used = self.steps + other.steps, self.live + other.live, self.used | other.used
        return replace(
            self, constraints=constraints, steps=steps, live=live, used=used, num_labels=other.num_labels,
            broadcast=self.broadcast | other.broadcast, picked=self.picked | other.picked,
            arguments=self.arguments + other.arguments,
        )  # fmt: skip


def trace(
    model: nn.Module,
    inputs: Inputs,
    labelled: Mapping[str, Tensor],
    *,
    after: Trace | None = None,
    without: Container[Origin] = (),
) -> Trace:
    """Run ``model`` once on ``inputs`` and return what its operations demand of labels.

    Args:
        model: is not changed.
        inputs: example inputs.
        labelled: the parameters and buffers whose indices get labels, by name.
        after: run in training mode instead of evaluation mode, after this trace, to be added to it.
        without: dims that get no labels because they are known not to be dealt out, and picks that keep places.

    Raises:
        ForwardRefused: the forward writes to a parameter.
        ValueError: the model does not run on the inputs, or returns no tensors.
    """
    training = after is not None
    tracer = _Tracer(model, labelled, without, after)
    if training:  # batch norm updates its statistics without telling the dispatcher
        tracer.saved = {name: (buffer, buffer.clone()) for name, buffer in dense_buffers(model)}
    try:
        with without_side_effects(model, training), tracer.running.tracked():
            with tracer, tracer.sizes, tracer.einsum, tracer.arguments.labelled():
                try:
                    output = call(model, inputs)
                except ForwardRefused:
                    raise
                except Exception as error:
                    where = f"in {tracer.running.innermost}: " if tracer.running.innermost else ""
                    raise ValueError(
                        f"the model does not run on the example inputs: {where}{first_line(error)}; give inputs as the "
                        "model takes them (a tensor, a tuple of positional or a dict of keyword arguments), and values "
                        "to a model on meta whose forward looks at them"
                        + (f"; {CHOOSE_COLUMNS}" if isinstance(inputs, dict) else "")
                    ) from error
            return tracer.finish(output)
    finally:
        with torch.no_grad():
            for buffer, before in tracer.saved.values():
                buffer.copy_(before)


class _Tracer(TorchDispatchMode):
    """Applies the rules to every operation of a forward.

    Tensors that share storage lie in one *memory*, which has a number.
    """

    def __init__(
        self, model: nn.Module, labelled: Mapping[str, Tensor], without: Container[Origin], after: Trace | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(Constraints(), [])
        self.labelled = labelled
        self.without = without
        self.mode = "evaluation" if after is None else "training"
        self.num_broadcasts = self.num_picks = 0
        self.labels: Any = WeakTensorKeyDictionary()
        self.memory: Any = WeakTensorKeyDictionary()
        self.num_memories = 0
        self.written: set[int] = set()  # memories that were written in part: no tensor in them is uniform any more
        self.viewed: set[int] = set()  # memories that several tensors lie in
        self.numbers = InvariantNumbers()
        self.looked = False  # at values
        self.arguments = Arguments(model, self)
        self.running = Running(model)
        self.einsum = InEinsum()
        self.sizes = SizesGiven(lambda: self.running.innermost, lambda: len(self.trace.steps))
        self.modules = dict(model.named_modules())
        self.parameters = {_storage(p): name for name, p in model.named_parameters()}
        self.buffers = {_storage(b): (name, b) for name, b in dense_buffers(model)}
        self.saved: dict[str, tuple[Tensor, Tensor]] = {}  # buffers that the forward changed, and their old values
        for name, tensor in labelled.items():
            self._give_labels(name, tensor, without)
        if after is not None:
            self.trace.num_labels = after.num_labels
            self.num_memories = 1 + max(memory for step in after.steps for memory in (*step.reads, *step.writes, -1))

    def _give_labels(self, name: str, tensor: Tensor, without: Container[Origin]) -> None:
        fields: list[Field] = []
        rows: list[Tensor | None] = []
        for d, size in enumerate(tensor.shape):
            if size == 1 or (name, d) in without:
                rows.append(None)
                continue
            ids = self.new_labels(size)
            rows.append(ids)
            fields.append(Field(ids.view([-1 if k == d else 1 for k in range(tensor.dim())]), frozenset({(name, d)})))
        self.trace.origins[name] = tuple(rows)
        self.labels[tensor] = Labels(tuple(fields), weight=isinstance(tensor, nn.Parameter))

    def fresh(self, size: int) -> Tensor | None:
        """Return new labels for a dim along which a tensor is broadcast, None if there shall be none."""
        origin = (f"broadcast in {self.mode} mode", self.num_broadcasts)
        self.num_broadcasts += 1
        if origin in self.without:
            return None
        ids = self.trace.broadcast[origin] = self.new_labels(size)
        return ids

    def new_labels(self, size: int) -> Tensor:
        """Return labels that nothing has yet."""
        ids = torch.arange(self.trace.num_labels, self.trace.num_labels + size)
        self.trace.num_labels += size
        return ids

    def keeps_places(self, ids: Tensor) -> bool:
        """Return whether a pick of places shall keep the labels of other places; see ``Operation.picked``."""
        origin = (f"picked in {self.mode} mode", self.num_picks)
        self.num_picks += 1
        self.trace.picked[origin] = ids
        return origin in self.without

    def labels_of(self, tensor: Tensor) -> Labels:
        """Return the labels of a tensor. One that was never seen (an input, a constant) has fixed dims."""
        found: Labels | None = self.labels.get(tensor)
        if found is None:
            return Labels(uniform=tensor.dim() == 0)
        if self.memory_of(tensor) not in self.written:
            return found
        wide, pinned = wide_dims(tensor), self.trace.constraints.pinned
        fields = tuple(
            replace(one, free=one.free and not one.dims & wide)
            for one in found.fields
            if not pinned.issuperset(one.ids.flatten().tolist())
        )
        return replace(found, fields=fields, uniform=tensor.dim() == 0 and found.uniform)

    def memory_of(self, tensor: Tensor) -> int:
        """Return the number of the memory that a tensor lies in."""
        if tensor not in self.memory:
            self.memory[tensor] = self.num_memories
            self.num_memories += 1
        number: int = self.memory[tensor]
        return number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation for real and apply its rule."""
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        layout = (inputs[0].shape, inputs[0].stride()) if inputs and inputs[0].layout == torch.strided else None
        written = written_by(func, args, kwargs)
        self._guard(written)
        result = func(*args, **kwargs)
        outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        with no_dispatch():  # labels are tensors, too, and no mode outside of this one need see them
            self._note(func, args, kwargs, inputs, layout, written, outs)
        return result

    def _note(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[Tensor],
        layout: tuple[torch.Size, tuple[int, ...]] | None, written: Sequence[Tensor], outs: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Apply the rule of an operation that ran, and add it to the steps."""
        constraints, steps = self.trace.constraints, self.trace.steps
        constraints.op = len(steps)
        before = {_storage(t): t for t in inputs}
        for out in outs:
            base = before.get(_storage(out))
            if base is not None:
                self.memory[out] = self.memory_of(base)
                if not any(out is t for t in inputs):
                    self.viewed.add(self.memory_of(base))
        module = self.running.innermost
        operation = Operation(
            constraints, self.labels_of, func.overloadpacket, args, kwargs, outs, self.fresh, self.keeps_places,
            self.modules.get(module), layout,
        )  # fmt: skip
        reads = frozenset(map(self.memory_of, inputs))
        writes = frozenset(map(self.memory_of, [*outs, *written]))
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            self.trace.looked_at_values.append(module)
        given = tuple(one for t in inputs for one in self.labels_of(t).fields)
        rule = rule_of(func)
        labels: list[Labels] = []
        try:
            if any(out.numel() for out in outs):
                labels = [constraints.varying(found) for found in (rule or pin_everything)(operation)]
            else:  # nothing, of any width
                labels = [Labels() for _ in outs]
            assert len(labels) == len(outs), func
        except Exception:  # the rule does not expect this use of the operation: treat it like one without a rule
            rule, labels = None, pin_everything(operation)
        labels = [
            self._settle(out, found) if any(out is w for w in written) else found
            for out, found in zip(outs, labels, strict=True)
        ]
        first = labels[0] if labels else Labels()
        numbers, extremes = self.numbers.of(func, args, kwargs, outs, written)
        self.arguments.note(inputs, outs, varies=len(set(extremes)) > 1)
        shape = _fixed_sizes(outs[0]) if outs and not self.einsum.running else None
        steps.append(
            Step(
                str(func.overloadpacket), module, reads, writes, first.fields, given, numbers, extremes,
                rule is not None, shape, any_width=first.uniform, after_values=self.looked, number=len(steps),
            )
        )  # fmt: skip
        self.looked = self.looked or _looks_at_values(func, args)
        self.labels.update(zip(outs, labels, strict=True))

    def _settle(self, tensor: Tensor, found: Labels) -> Labels:
        """Return the labels of a tensor that was written in place: its old labels, joined with the new ones."""
        before = self.labels_of(tensor)
        if before is found or (before.uniform and found.uniform and tensor._base is None):
            return found
        memory = self.memory_of(tensor)
        fresh = before.uniform and tensor.dim() and memory not in self.viewed
        self.written.add(memory)
        if fresh:  # filled for the first time: only what is written matters
            return replace(found, uniform=False)
        wide = wide_dims(tensor)
        before = self.labels_of(tensor)  # not uniform any more
        fields = self.trace.constraints.unify([(before, wide), (found, wide)])
        return Labels(fields) if fields else Labels(uniform=tensor.dim() == 0)

    def _guard(self, written: Sequence[Tensor]) -> None:
        """Refuse writes to parameters; keep the old values of buffers."""
        for tensor in written:
            key = _storage(tensor)
            if key in self.parameters:
                raise ForwardRefused(
                    f"{self.parameters[key]}: the forward of {self.running.innermost or 'the model'} writes to it, "
                    "expected a forward that leaves parameters alone; make it a buffer, or update it outside of forward"
                )
            if key in self.buffers and self.buffers[key][0] not in self.saved:
                name, buffer = self.buffers[key]
                self.saved[name] = (buffer, buffer.clone())

    def finish(self, output: Any) -> Trace:
        """Pin the outputs and find the operations they depend on."""
        constraints = self.trace.constraints
        needed = set()
        constraints.op = len(self.trace.steps)
        outputs = list(tensors_of(output))
        if not outputs:
            raise ValueError(
                f"the model returns {type(output).__name__} without tensors, expected a tensor, or tensors in tuples, "
                "lists, dicts or dataclasses"
            )
        for tensor in outputs:
            constraints.pin(self.labels_of(tensor).fields)
            constraints.mark(self.labels_of(tensor).fields, "out")
            needed.add(self.memory_of(tensor))
        live = []
        for step in reversed(self.trace.steps):
            live.append(bool(step.writes & needed) or step.name == "aten._local_scalar_dense")
            if live[-1]:
                needed |= step.reads
        self.trace.sizes, self.trace.arguments = self.sizes.given, self.arguments.found
        self.trace.live = [*reversed(live), True]
        self.trace.used = frozenset(name for name, t in self.labelled.items() if self.memory_of(t) in needed)
        self.trace.steps.append(Step("model output", ""))
        return self.trace


def _storage(tensor: Tensor) -> int:
    """Return a number of the tensor's storage; a sparse tensor, which has several, counts by itself."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else -id(tensor)


def _fixed_sizes(tensor: Tensor) -> tuple[int | None, ...]:
    """Return the sizes of a tensor, None for dims that are broadcast, and for all if it is empty."""
    wide = wide_dims(tensor)
    return tuple(n if d in wide or (n == 1 and tensor.numel()) else None for d, n in enumerate(tensor.shape))


def _looks_at_values(func: Any, args: Sequence[Any]) -> bool:
    """Return whether the result's shape, or what the forward does next, may depend on values, which differ by width."""
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        return True
    taken = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put) else ()
    return any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in taken or ())
