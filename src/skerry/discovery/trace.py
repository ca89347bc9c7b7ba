"""Trace: run a model once and note what each operation demands of labels.

The forward runs for real, in eager mode, on the example inputs; nothing is compiled or exported, so any model that runs
can be traced. A ``TorchDispatchMode`` sees every operation with the tensors it works on. The rules that say what an
operation means for labels are in ``operations.py``.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from skerry.discovery.labels import Bonds, Field, Labels, Origin
from skerry.discovery.numbers import Constants, numbers_of, written_by
from skerry.discovery.running import module_names, quietly
from skerry.model.inputs import Inputs, call, tensors_of

Rule = Callable[["Operation"], Sequence[Labels]]


class ForwardRefused(ValueError):
    """The model's forward does something for which no subnet can stand."""


@dataclass(frozen=True, eq=False)
class Step:
    """An operation that ran.

    Attributes:
        name: of the operation.
        module: name of the module that ran it.
        reads: the memory it read, by number.
        writes: the memory it wrote.
        fields: the labels of its (first) result.
        numbers: the numbers among its arguments, and the extremes of a result that comes from neither inputs nor
            weights: in a narrow net they must be the same.
        known: whether there is a rule for it.
        shape: of its (first) result, None for dims that are broadcast; None if there is no result.
        free: whether the result goes with any width (``Labels.uniform``).
        loose: whether an operation before it looked at values, so that a narrow net may do something else.
    """

    name: str
    module: str
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    fields: tuple[Field, ...] = ()
    numbers: tuple[float, ...] = ()
    known: bool = True
    shape: tuple[int | None, ...] | None = None
    free: bool = False
    loose: bool = False


@dataclass(frozen=True, eq=False)
class Operation:
    """What a rule gets: the operation, its arguments and results, and the means to look labels up and join them."""

    bonds: Bonds
    labels_of: Callable[[Tensor], Labels]
    packet: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outs: Sequence[Tensor]
    module: nn.Module | None
    layout: tuple[torch.Size, tuple[int, ...]] | None  # shape and strides of the first tensor before it ran

    def arg(self, position: int, name: str = "", default: Any = None) -> Any:
        """An argument by position or, where it was given so, by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        """All tensor arguments."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]


@dataclass
class Trace:
    """What a forward left behind: all bonds; which operations and labelled tensors the outputs depend on."""

    bonds: Bonds
    steps: list[Step]
    live: list[bool] = field(default_factory=list)
    origins: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    num_labels: int = 1
    used: frozenset[str] = frozenset()
    looked_at_values: list[str] = field(default_factory=list)


def both(a: Trace, b: Trace) -> Trace:
    """What two forwards of one model, with the same labels, demand together."""
    shift = len(a.steps)
    bonds = Bonds(
        edges=a.bonds.edges + [replace(edge, op=edge.op + shift) for edge in b.bonds.edges],
        outermost=a.bonds.outermost + [(ids, op + shift) for ids, op in b.bonds.outermost],
        prefixes=a.bonds.prefixes + [(ids, dim, ends, op + shift) for ids, dim, ends, op in b.bonds.prefixes],
        roles=a.bonds.roles + [(origin, role, op + shift) for origin, role, op in b.bonds.roles],
        heads=a.bonds.heads + b.bonds.heads,
        preferred=a.bonds.preferred + b.bonds.preferred,
    )
    return replace(a, bonds=bonds, steps=a.steps + b.steps, live=a.live + b.live, used=a.used | b.used)


class Tracer(TorchDispatchMode):
    """Applies the rules to every operation of a forward."""

    def __init__(
        self,
        model: nn.Module,
        rule_of: Callable[[Any], Rule | None],
        labelled: Mapping[str, Tensor],
        without: Container[Origin],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(Bonds(), [])
        self.rule_of = rule_of
        self.labelled = labelled
        self.labels: Any = WeakTensorKeyDictionary()
        self.memory: Any = WeakTensorKeyDictionary()  # tensor -> number of the memory it lies in
        self.num_memories = 0
        self.written: set[int] = set()  # memories written to in part: no tensor in them is uniform any more
        self.viewed: set[int] = set()  # memories that several tensors lie in
        self.constants = Constants()
        self.looked = False
        self.modules: list[str] = []
        self.by_name = dict(model.named_modules())
        self.frozen: dict[int, str] = {}  # storage -> the parameter in it
        self.buffers = {b.untyped_storage()._cdata: (name, b) for name, b in model.named_buffers()}
        self.saved: dict[str, tuple[Tensor, Tensor]] = {}  # buffers that the forward changed, as they were
        for name, tensor in labelled.items():
            self._give_labels(name, tensor, without)
        for name, parameter in model.named_parameters():
            self.frozen[parameter.untyped_storage()._cdata] = name

    def _give_labels(self, name: str, tensor: Tensor, without: Container[Origin]) -> None:
        fields: list[Field] = []
        rows: list[Tensor | None] = []
        for d, size in enumerate(tensor.shape):
            if size == 1 or (name, d) in without:
                rows.append(None)
                continue
            ids = torch.arange(self.trace.num_labels, self.trace.num_labels + size)
            self.trace.num_labels += size
            rows.append(ids)
            fields.append(Field(ids.view([-1 if k == d else 1 for k in range(tensor.dim())]), frozenset({(name, d)})))
        self.trace.origins[name] = tuple(rows)
        self.labels[tensor] = Labels(tuple(fields), weight=True)

    def labels_of(self, tensor: Tensor) -> Labels:
        """The labels of a tensor; one never seen (an input, a constant) has fixed dims."""
        found: Labels | None = self.labels.get(tensor)
        if found is None or (found.uniform and self.memory_of(tensor) in self.written):
            return Labels(uniform=tensor.dim() == 0)
        return found

    def memory_of(self, tensor: Tensor) -> int:
        """The number of the memory that a tensor lies in."""
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
        layout = (inputs[0].shape, inputs[0].stride()) if inputs else None
        written = written_by(func, args, kwargs)
        self._guard(written)
        result = func(*args, **kwargs)
        outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]

        bonds, steps = self.trace.bonds, self.trace.steps
        bonds.now = len(steps)
        before = {t.untyped_storage()._cdata: t for t in inputs}
        for out in outs:
            base = before.get(out.untyped_storage()._cdata)
            if base is not None:
                self.memory[out] = self.memory_of(base)
                if not any(out is t for t in inputs):
                    self.viewed.add(self.memory_of(base))
        running = self.modules[-1] if self.modules else ""
        module = self.by_name.get(running)
        operation = Operation(bonds, self.labels_of, func.overloadpacket, args, kwargs, outs, module, layout)
        ids = frozenset(map(self.memory_of, inputs))
        to = frozenset(map(self.memory_of, [*outs, *written]))
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            self.trace.looked_at_values.append(running)
        rule = self.rule_of(func)
        labels: list[Labels] = []
        try:
            labels = [bonds.varying(found) for found in (rule or pin_everything)(operation)] if outs else []
            assert len(labels) == len(outs), func
        except Exception:  # a use of the operation that its rule does not foresee: like an operation without one
            rule, labels = None, pin_everything(operation)
        first = labels[0] if labels else Labels()
        numbers = numbers_of(func, args, kwargs)
        numbers += self.constants.note(func, inputs, outs, written)
        shape = tuple(n if outs[0].stride(d) else None for d, n in enumerate(outs[0].shape)) if outs else None
        name = str(func.overloadpacket)
        steps.append(
            Step(name, running, ids, to, first.fields, numbers, rule is not None, shape, first.uniform, self.looked)
        )
        self.looked = self.looked or _looks_at_values(func, args)
        if outs:
            for out, found in zip(outs, labels, strict=True):
                self.labels[out] = self._settle(out, found) if any(out is w for w in written) else found
        return result

    def _settle(self, tensor: Tensor, found: Labels) -> Labels:
        """The labels of a tensor that was written in place: its elements keep theirs, so the new ones join them."""
        before = self.labels_of(tensor)
        if before is found or (before.uniform and found.uniform and tensor._base is None):
            return found
        memory = self.memory_of(tensor)
        fresh = before.uniform and tensor.dim() and memory not in self.viewed
        self.written.add(memory)
        if fresh:  # filled for the first time: what is written decides
            return replace(found, uniform=False)
        bonds = self.trace.bonds
        wide = wide_dims(tensor)
        before = self.labels_of(tensor)  # not uniform any more
        fields = bonds.unify([(before, wide), (found, wide)])
        return Labels(fields) if fields else Labels(uniform=tensor.dim() == 0)

    def _guard(self, written: Sequence[Tensor]) -> None:
        for tensor in written:
            key = tensor.untyped_storage()._cdata
            if key in self.frozen:
                raise ForwardRefused(
                    f"{self.frozen[key]}: the forward of {self.modules[-1] or 'the model'} writes to it, expected a "
                    "forward that leaves parameters alone; make it a buffer, or do the update outside of forward"
                )
            if key in self.buffers and self.buffers[key][0] not in self.saved:
                name, buffer = self.buffers[key]
                self.saved[name] = (buffer, buffer.clone())

    def finish(self, output: Any) -> Trace:
        """Pin the outputs and find the operations they depend on."""
        bonds = self.trace.bonds
        needed = set()
        bonds.now = len(self.trace.steps)
        outputs = list(tensors_of(output))
        if not outputs:
            raise ValueError(
                f"the model returns {type(output).__name__} without tensors, expected a tensor, or tensors in tuples, "
                "lists, dicts or dataclasses"
            )
        for tensor in outputs:
            bonds.pin(self.labels_of(tensor).fields)
            bonds.used(self.labels_of(tensor).fields)
            needed.add(self.memory_of(tensor))
        live = []
        for step in reversed(self.trace.steps):
            live.append(bool(step.writes & needed) or step.name == "aten._local_scalar_dense")
            if live[-1]:
                needed |= step.reads
        self.trace.live = [*reversed(live), True]
        self.trace.used = frozenset(name for name, t in self.labelled.items() if self.memory_of(t) in needed)
        self.trace.steps.append(Step("model output", ""))
        return self.trace


def pin_everything(op: Operation) -> list[Labels]:
    """For an operation without a rule: nothing that goes through it is dealt out."""
    for tensor in op.tensors():
        op.bonds.pin(op.labels_of(tensor).fields)
    return [Labels() for _ in op.outs]


def _looks_at_values(func: Any, args: Sequence[Any]) -> bool:
    """Whether what comes out, or what is done next, may depend on values: a narrow net has others."""
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        return True
    taken = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put) else ()
    return any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in taken or ())


def wide_dims(tensor: Tensor) -> frozenset[int]:
    """The dims with more than one index in memory; expanded ones are broadcast."""
    return frozenset(d for d, n in enumerate(tensor.shape) if n > 1 and tensor.stride(d) != 0)


def trace(
    model: nn.Module,
    inputs: Inputs,
    rule_of: Callable[[Any], Rule | None],
    labelled: Mapping[str, Tensor],
    *,
    training: bool = False,
    without: Container[Origin] = (),
) -> Trace:
    """Run ``model`` once on ``inputs`` and return what its operations demand of the labels of ``labelled``.

    In evaluation or training mode. Dims in ``without`` get no labels: they are known not to be dealt out.
    """
    tracer = Tracer(model, rule_of, labelled, without)
    if training:  # batch norm updates its statistics without saying so to the dispatcher
        tracer.saved = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    try:
        with quietly(model, training), module_names(model, tracer.modules):
            with tracer:
                try:
                    output = call(model, inputs)
                except ForwardRefused:
                    raise
                except Exception as error:
                    where = f"in {tracer.modules[-1]}: " if tracer.modules and tracer.modules[-1] else ""
                    said = (str(error).splitlines() or [type(error).__name__])[0]
                    raise ValueError(
                        f"the model does not run on the example inputs: {where}{said}; give inputs as the model takes "
                        "them (a tensor, a tuple of positional or a dict of keyword arguments)"
                    ) from error
            return tracer.finish(output)
    finally:
        with torch.no_grad():
            for buffer, before in tracer.saved.values():
                buffer.copy_(before)
