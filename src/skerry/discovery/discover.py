"""Discover: make the plan of any module from one forward on example inputs."""

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skerry.choose import did_you_mean
from skerry.discovery.forward_contexts import without_side_effects
from skerry.discovery.hard_coded_widths import drop_hard_coded
from skerry.discovery.index_labels import Origin
from skerry.discovery.named.blocks import Blocks
from skerry.discovery.named.experts import Experts
from skerry.discovery.narrow_trial import Trial
from skerry.discovery.tied_weights import norms_before_tied
from skerry.discovery.trace import ForwardRefused, Trace, trace
from skerry.discovery.unit_solver import Touched, Units, alike, solve, wasted
from skerry.model.group_norms import group_norms_
from skerry.model.grouped_norm import GroupedNorm
from skerry.model.inputs import Inputs, call, tensors_of
from skerry.model.supported_models import check_supported
from skerry.model.tensors import dense_buffers, named_tensors
from skerry.plan.dims import Axis, DealtDim
from skerry.plan.rules import Role, match
from skerry.plan.table import Note, Patch, Plan

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def discover(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    blocks: Blocks | Experts | Sequence[Blocks | Experts] = (),
    patches: Mapping[str, Patch] | None = None,
    grouped_norms: int | bool = False,
) -> Plan:
    """Find what can be dealt out of ``model``, whatever its architecture.

    Every index of every parameter dim gets a label. The model runs once on the example inputs, in each mode. Each
    operation says which labels must be held together, so that it gives the narrow result on narrow tensors. Joined
    labels make a unit, and units that look alike make an axis.

    Some dims are not dealt out: inputs, outputs, dims that are normalised or averaged over, and all that passes through
    an operation without a rule. When in doubt, less is dealt out. Finally a narrow net is run, and axes for which it
    does not run as planned (a width is hard-coded in some ``forward``) are left out. The plan's notes say what is not
    dealt out and why; ``print(plan)`` shows them.

    The plan holds for the forward in both modes, or in evaluation mode alone if training mode does not run on the
    inputs. It assumes ordinary gradients, not those of an ``autograd.Function`` of your own; ``verify`` checks
    gradients too. Values that a forward leaves in attributes do not count as outputs.

    Args:
        model: any module; it is not changed, but for ``grouped_norms``.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. A small batch is enough, but
            batch norm needs more than one sample to run in training mode.
        blocks: residual blocks and experts of mixtures to deal out whole, beside the units within them.
        patches: pattern of module names -> ``patch(narrow, full)``, for modules that hard-code a width
            (``skerry.subnet.adapters``).
        grouped_norms: **changes what the model computes**, in place: its norms over the residual stream become norms
            over so many groups of features, so that the stream is dealt out, too (``group_norms_``). Best the number of
            workers, then a subnet has usual norms. True: as many as an attention layer has heads to deal out.

    Returns:
        The plan. Its axes are named after the modules that have the dealt tensors.

    Raises:
        ValueError: the model does not run on the inputs, writes to its parameters, or has parameters without data; a
            pattern of ``patches`` or ``blocks`` matches nothing; norms cannot be grouped so.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> [(axis.name, axis.num_units) for axis in discover(model, torch.randn(4, 8)).axes]
        [('0', 6)]
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {type(model).__name__}, expected an nn.Module; discover(model, example_inputs)")
    several = (blocks,) if isinstance(blocks, Blocks | Experts) else blocks
    if not isinstance(several, Sequence) or not all(isinstance(one, Blocks | Experts) for one in several):
        raise ValueError(f"blocks: got {blocks!r}, expected skerry.Blocks('layers.*') or a list of them")
    check_supported(model)
    _check_patterns(model, patches or {})
    if grouped_norms is True:
        heads = {
            axis.num_units for axis in discover(model, example_inputs, patches=patches).axes if axis.kind == "heads"
        }
        if len(heads) != 1:
            got = (
                f"layers with {', '.join(map(str, sorted(heads)))} heads" if heads else "no attention heads to deal out"
            )
            raise ValueError(f"grouped_norms=True: {got}; give the number of groups, best that of workers")
        grouped_norms = heads.pop()
    if grouped_norms is not False:
        group_norms_(model, grouped_norms)
    labelled: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(dense_buffers(model))}

    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors_of(example_inputs)):
        with suppress(Exception), without_side_effects(model):  # an EdgeIndex keeps what the first forward computes
            call(model, example_inputs)

    def look(without: frozenset[Origin]) -> tuple[list[Trace], Trace, Units]:
        """Return the traces in evaluation mode and, if it runs, in training mode, and both together."""
        found = [trace(model, example_inputs, labelled, without=without)]
        together = found[0]
        try:
            found.append(trace(model, example_inputs, labelled, after=together, without=without))
            together = together + found[1]
        except ForwardRefused:
            raise
        except ValueError:  # batch norm does not train on one sample
            pass
        return found, together, solve(together, norms_before_tied(together, model))

    found, together, units = look(frozenset())
    in_vain = wasted(together, units)
    if in_vain:
        again = look(in_vain)
        if _num_dealt(again[1], again[2]) > _num_dealt(together, units):
            found, together, units = again
    named = [one.plan(model, example_inputs) for one in several]
    plan, unit_of_label = _plan(model, together, units, patches or {}, _dims_of(named))
    plan = drop_hard_coded(Trial(model, example_inputs, plan, found, unit_of_label), plan)
    for one in named:
        plan = plan + one
    return plan


def _dims_of(plans: Sequence[Plan]) -> frozenset[Origin]:
    return frozenset((n, d) for p in plans for n, row in p.dims.items() for d, dim in enumerate(row) if dim is not None)


def _num_dealt(trace: Trace, units: Units) -> int:
    """Return the number of indices of parameter dims that units allow to deal out."""
    return sum(
        int((units.of[ids.numpy()] > 0).sum()) for rows in trace.origins.values() for ids in rows if ids is not None
    )


def _plan(
    model: nn.Module, trace: Trace, units: Units, patches: Mapping[str, Patch], elsewhere: Container[Origin]
) -> tuple[Plan, Tensor]:
    """Return the plan, and for each label the id of its unit in it, -1 for labels that are not dealt out.

    Dims that are dealt out ``elsewhere`` get no note.
    """
    groups = [
        (group, dims)
        for group, dims in alike(trace, units)
        if len(group) > 1 and any(origin in units.reads for origin in dims)
    ]
    names = _names([[name for name, _ in dims] for _, dims in groups])
    axes, start = [], 0
    id_of = np.full(trace.num_labels, -1, dtype=np.int32)  # unit of the solver -> its id in the plan
    for (group, dims), name in zip(groups, names, strict=True):
        axes.append(Axis(name, len(group), _kind(model, units, group, dims), start))
        id_of[np.array(group)] = np.arange(start, start + len(group))
        start += len(group)
    known: dict[bytes, Tensor] = {}  # dims with the same ids share one tensor
    rows: dict[str, tuple[DealtDim | None, ...]] = {}
    for name, origins in trace.origins.items():
        row: list[DealtDim | None] = []
        for d, ids in enumerate(origins):
            own = id_of[units.of[ids.numpy()]] if ids is not None else np.full(1, -1, np.int32)
            shared = known.setdefault(own.tobytes(), torch.from_numpy(own))
            role: Role = "in" if (name, d) in units.reads else "out"
            row.append(DealtDim(shared, role) if (own >= 0).any() else None)
        if any(dim is not None for dim in row):
            rows[name] = tuple(row)
    shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    plan = Plan(tuple(axes), rows, shapes, patches=patches, notes=_notes(model, trace, units, id_of, elsewhere))
    return plan, torch.from_numpy(id_of[units.of])


def _names(tensors: Sequence[Sequence[str]]) -> list[str]:
    """Name each axis after the module that has all its tensors, or, if that is not unique, after its first tensor's."""
    inside = [_common([name.rpartition(".")[0] for name in names]) for names in tensors]
    makers = [names[0].rpartition(".")[0] or names[0] for names in tensors]
    chosen = [
        whole if whole and inside.count(whole) == 1 else maker for whole, maker in zip(inside, makers, strict=True)
    ]
    return [
        name if chosen.count(name) == 1 else f"{name}.{sum(other == name for other in chosen[:k])}"
        for k, name in enumerate(chosen)
    ]


def _common(modules: Sequence[str]) -> str:
    """Return the module that contains all of ``modules``, "" if it is the model itself."""
    columns = zip(*(module.split(".") for module in modules), strict=False)
    return ".".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _kind(model: nn.Module, units: Units, group: Sequence[int], dims: Touched) -> str:
    modules = [(model.get_submodule(name.rpartition(".")[0]), per_unit) for (name, _), per_unit in dims.items()]
    several = [module for module, per_unit in modules if per_unit > 1]
    if group[0] in units.heads and several:
        return "heads"
    if any(isinstance(m, nn.GroupNorm | GroupedNorm) or (isinstance(m, _CONVS) and m.groups > 1) for m in several):
        return "groups"
    return "channels" if any(isinstance(module, _CONVS) for module, _ in modules) else "neurons"


def _notes(
    model: nn.Module, trace: Trace, units: Units, id_of: NDArray[np.int32], elsewhere: Container[Origin]
) -> tuple[Note, ...]:
    """Return a note for each reason why parameter dims are not dealt out."""
    by_reason: dict[tuple[int, bool, int], list[str]] = {}
    for name, origins in trace.origins.items():
        for d, ids in enumerate(origins):
            if ids is None or (name, d) in elsewhere or (id_of[units.of[ids.numpy()]] >= 0).any():
                continue
            pinned = ids.numpy()[units.of[ids.numpy()] == 0]
            reason = int(units.reasons[pinned].max()) if len(pinned) else (-2 if name in trace.used else -1)
            if d > 1 and reason >= 0 and "convolution" in trace.steps[reason].name:  # a kernel in space reads no units
                continue
            makes = (name, d) in units.makes
            by_reason.setdefault((reason, makes, len(ids)), []).append(f"{name} dim {d}")
    notes: dict[str, list[str]] = {}
    readers = 0
    for (reason, makes, size), dims in by_reason.items():
        why = _why(model, trace, reason, units.tied, makes)
        if why is None:
            readers += len(dims)
        else:
            few = ", ".join(dims[:2]) + (f" and {len(dims) - 2} more" if len(dims) > 2 else "")
            notes.setdefault(why, []).append(f"{few} ({size})")
    if readers:
        notes["what they read is not dealt out"] = [f"{readers} other dims" if readers > 1 else "1 other dim"]
    looked = tuple(
        Note("the forward looks at values" + (f" in {module}" if module else ""), "the plan holds for the path taken")
        for module in dict.fromkeys(trace.looked_at_values)
    )
    return tuple(Note("; ".join(what), why) for why, what in notes.items()) + looked


_WHY = [
    ("model output", "the model's output"),
    ("embedding", "looked up by index ({op})"),
    ("index", "looked up by index ({op})"),
    ("gather", "looked up by index ({op})"),
    ("layer_norm", "normalised over ({op})"),
    ("rms_norm", "normalised over ({op})"),
    ("softmax", "softmax over it ({op})"),
    ("mean", "averaged over ({op})"),
    ("sum", "summed over ({op})"),
]


def _why(model: nn.Module, trace: Trace, reason: int, tied: Container[int], makes: bool) -> str | None:
    """Return the reason in words; None for a weight that is whole because what it reads is.

    ``tied``: where tied weights met units that they make and read; ``makes``: it makes units itself.
    """
    if reason == -2:
        return "a single unit, or no weight sums over it"
    if reason < 0:
        return "not used for the output on these inputs"
    step = trace.steps[reason]
    where = f" in {step.module}" if step.module else ""
    if reason in tied:
        return f"a tied weight makes it, and reads it{where}; untie it"
    op = step.name.replace("aten.", "aten::")
    product = "convolution" in op or op.split("::")[-1] in ("mm", "addmm", "bmm", "baddbmm")
    if product and not makes:
        return None
    text = "summed over, but not by a plain parameter ({op})" if product else ""
    text = text or next((why for key, why in _WHY if key in op), "")
    if not text and not step.known:
        text = "unknown op {op}"
    kind = type(model.get_submodule(step.module))
    if kind.__name__ == "LayerNorm" and kind.__module__.startswith("torch_geometric"):
        where += ", a layer norm over all units; norm='batch_norm' or 'graph_norm' norms each by itself"
    return (text or "meets a fixed size at {op}").format(op=op) + where


def _check_patterns(model: nn.Module, patches: Mapping[str, Patch]) -> None:
    names = [name for name, _ in model.named_modules()]
    for pattern in patches:
        if not any(match(pattern, name) is not None for name in names):
            raise ValueError(f"patch '{pattern}' matches no module of the model{did_you_mean(pattern, names)}")
