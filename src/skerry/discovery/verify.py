"""Verify a plan: check that a narrow subnet computes what the masked full model computes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.discovery.forward_contexts import (
    Running,
    WithoutDropout,
    after_each,
    first_line,
    same_draws,
    without_side_effects,
)
from skerry.discovery.narrow_trial import some_units
from skerry.model.inputs import Inputs, call, map_tensors, tensors_of
from skerry.model.supported_models import check_supported
from skerry.model.tensors import copied, fill_, named_tensors, skeleton
from skerry.plan.table import Plan
from skerry.randomness import generator, own_random_state
from skerry.subnet.adapters import remedy
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract, plan_of_subnet
from skerry.subnet.masked import masked
from skerry.subnet.slicing import take

_REMEDY = (
    "a module over it is in no rule, or takes statistics across it (layer norm, group norm), or it is added to another "
    "axis (two that are added must be one axis), or a patch is wrong, or the forward does something else at this size; "
    "fix that, or leave the axis whole (plan.without)"
)
_OF_ROUTERS = (
    "the router does not choose among the experts that a subnet has as it would in the full model: it adds noise (a "
    "subnet draws other numbers) or chooses among groups of experts first; deal out their hidden units instead, which "
    "discover finds without Experts"
)


def verify(
    model: nn.Module, plan: Plan, example_inputs: Inputs, *, tolerance: float = 1e-4, pieces: Sequence[Tensor] = ()
) -> None:
    """Check that subnets of ``plan`` compute what ``model`` computes when nothing reads the units they do not have.

    A subnet with about 2 of 11 units of each axis, drawn axis by axis as a partition does it, is checked, and one for
    each of ``pieces``, in evaluation and in training mode (if the model runs in it on these inputs; without dropout).
    Outputs and gradients are compared, in double precision if the model runs in it. If they differ, some axes are
    checked alone, to name the wrong one. This works on copies: it takes twice the model's memory and, for each subnet
    and mode, two forwards and backwards.

    Args:
        model: the full model; not changed.
        plan: its plan.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        tolerance: the largest allowed difference, relative to the largest element of each output, and of all gradients;
            at least 1e-2 where double precision does not run.
        pieces: global ids of the units of more subnets. ``skerry.train`` gives one of each size that its workers have,
            since a forward may treat one size in another way.

    Raises:
        ValueError: a subnet does not run, or computes something else; the message names axis, size, mode, module and
            tensor, and says what to do.

    Example:
        >>> from skerry.discovery import discover
        >>> model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 8)
        >>> verify(model, discover(model, x), x)
    """
    plan.check(model)
    check_supported(model)
    for units in [some_units(plan, generator("verify")), *pieces]:
        for training in (False, True):
            check = partial(_mismatch, model, plan, inputs=example_inputs, tolerance=tolerance, training=training)
            found = check(units)
            if found is not None:
                raise ValueError(_named(plan, units, check, found) + (", in training mode" if training else ""))


def _named(plan: Plan, units: Tensor, check: Callable[[Tensor], str | None], found: str) -> str:
    """Return how the subnet of ``units`` differs, with the axis that is to blame: halves of the axes are checked."""
    suspects = list(plan.axes)
    while len(suspects) > 1:
        for half in (suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]):
            held = torch.ones(plan.num_units, dtype=torch.bool)
            for axis in half:
                held[axis.units] = False
            held[units] = True
            again = check(held.nonzero().flatten())
            if again is not None:
                suspects, found = half, again
                break
        else:
            break
    held = torch.zeros(plan.num_units, dtype=torch.bool)
    held[units] = True
    if [axis.kind for axis in suspects] == ["experts"]:
        found = found.replace(_REMEDY, _OF_ROUTERS)
    sizes = [f"'{axis.name}' with {int(held[axis.units].sum())} of {axis.num_units} units" for axis in suspects[:4]]
    return f"axis {sizes[0]}: {found}" if len(suspects) == 1 else f"axes {', '.join(sizes)}, ... together: {found}"


def verify_small(model: nn.Module, plan: Plan, example_inputs: Inputs, pieces: Sequence[Tensor] = ()) -> None:
    """Verify small nets with random values, made of the modules of ``model``, which may be on the meta device.

    One net has the first few units of each axis, and one for each of ``pieces`` has a few more than the piece. They
    take the memory of these and of all that is not dealt out.

    Args:
        model: the full model; not changed.
        plan: its plan.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        pieces: as for ``verify``.

    Raises:
        ValueError: as ``verify``.
    """
    for piece in [torch.empty(0, dtype=torch.int64), *pieces]:
        small, its_plan, units = _small(model, plan, piece)
        small.eval()
        running = Running(small)
        try:
            with own_random_state(), torch.no_grad(), running.tracked():
                call(small, example_inputs)
        except Exception as error:
            raise ValueError(_does_not_run(small, running.innermost, error)) from error
        verify(small, its_plan, example_inputs, pieces=[units] if len(piece) else [])


def _small(model: nn.Module, plan: Plan, piece: Tensor) -> tuple[nn.Module, Plan, Tensor]:
    """Return a small net with the units of ``piece``, its plan, and the ids of these units in it."""
    held = torch.zeros(plan.num_units, dtype=torch.bool)
    held[piece] = True
    wanted = held.clone()
    for axis in plan.axes:
        others = (~held[axis.units]).nonzero().flatten()
        wanted[axis.start + others[: 3 if len(piece) else 11]] = True
    units = wanted.nonzero().flatten()
    rng = generator("small")

    def value(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        low = 0.5 if tensor.dim() < 2 else -0.5  # a variance, for example, must be positive
        return torch.empty(tensor.shape, dtype=tensor.dtype).uniform_(low, low + 1, generator=rng)

    small = extract(skeleton(model), plan, units)
    small = fill_(small, {n: value(t) for n, t in named_tensors(small).items()})
    return small, plan_of_subnet(plan, units), held[units].nonzero().flatten()


def _mismatch(
    model: nn.Module, plan: Plan, units: Tensor, inputs: Inputs, tolerance: float, training: bool
) -> str | None:
    """Return in words how the subnet of ``units`` differs from the masked full model, None if it does not."""
    full, inputs, exact = _in_double(masked(model, plan, units).train(training), inputs)
    if not exact:
        tolerance = max(tolerance, 1e-2)
    seen_narrow: dict[str, Tensor] = {}
    seen_full: dict[str, Tensor] = {}

    def run(net: nn.Module, seen: dict[str, Tensor]) -> list[Tensor]:
        """Return the outputs of ``net``, and keep in ``seen`` the first output of each submodule, in order."""

        def keep(name: str, args: Any, output: Any) -> None:
            first = next(tensors_of(output), None)
            if first is not None and first.is_floating_point():
                seen.setdefault(name, first.detach())

        torch.manual_seed(0)
        with (
            after_each({name: module for name, module in net.named_modules() if name}, keep),
            WithoutDropout(),
            same_draws(),
        ):
            return list(tensors_of(call(net, inputs)))

    def gradients(net: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor | None]:
        return _gradients(net, outputs) if exact else {}

    # Of the first net only gradients stay when the second one is made: both together take more memory.
    with own_random_state(), torch.enable_grad():
        try:
            expected = run(full, seen_full)
        except Exception:
            if training:  # batch norm does not train on one sample
                return None
            raise
        of_full = gradients(full, expected)
        expected = [t.detach() for t in expected]
        del full
        narrow = extract(model, plan, units).train(training)
        running = Running(_double(narrow) if exact else narrow)
        try:
            with running.tracked():
                got = run(narrow, seen_narrow)
        except Exception as error:
            return _does_not_run(model, running.innermost, error)
        of_narrow = gradients(narrow, got)
        got = [t.detach() for t in got]
        del narrow
    if [t.shape for t in got] != [t.shape for t in expected]:
        shapes = f"{[tuple(t.shape) for t in got]}, expected {[tuple(t.shape) for t in expected]}"
        return f"a narrow subnet's outputs have shapes {shapes}; {_REMEDY}"
    off = max((_off(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
    if not off <= tolerance:
        names = (n for n, t in seen_narrow.items() if n in seen_full and t.shape == seen_full[n].shape)
        first = next((n for n in names if not _off(seen_narrow[n], seen_full[n]) <= tolerance), "")
        return (
            f"a narrow subnet's output differs by {off:.1e} of its size from the full model's in which nothing reads "
            f"the other units, first after {first or 'the last module'}, expected at most {tolerance:.0e}; {_REMEDY}"
        )
    return _gradient_mismatch(Cuts(plan, units), of_narrow, of_full, tolerance)


def _does_not_run(model: nn.Module, where: str, error: Exception) -> str:
    what_to_do = remedy(where, model.get_submodule(where)) if where else _REMEDY
    if "selected index k out of range" in str(error):
        what_to_do = (
            "if a router chooses k experts, a subnet needs at least k: use fewer workers, or deal out no experts"
        )
    if "multiple of 16 bytes" in str(error):
        what_to_do = (
            "torch's grouped product takes no such width: use another number of workers, or, for a model of "
            "transformers, config._experts_implementation = 'eager'"
        )
    if where and isinstance(model.get_submodule(where), nn.modules.batchnorm._BatchNorm):
        what_to_do = (
            f"if the plan has no rule for it, add one: '{where}': Out(the axis before it); else leave the axis whole"
        )
    return f"a narrow subnet does not run, in {where or 'the model itself'} ({first_line(error)}); {what_to_do}"


def _gradients(net: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor | None]:
    """Return the gradients, by name, of a sum of all outputs in which each element counts differently."""
    loss = sum(
        (t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).view_as(t)).sum()
        for t in outputs
        if t.is_floating_point() and t.requires_grad
    )
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
    return {name: None if p.grad is None else p.grad.to_dense() for name, p in net.named_parameters()}


def _gradient_mismatch(
    cuts: Cuts, narrow: dict[str, Tensor | None], full: dict[str, Tensor | None], tolerance: float
) -> str | None:
    """Return in words how gradients differ, None if they do not. What is compared is dropped."""
    largest = max((float(g.abs().max()) for g in full.values() if g is not None and g.numel()), default=0.0)
    for name in list(narrow):
        gradient, reference, cut = narrow.pop(name), full.pop(name), cuts.of(name)
        if cut is None:
            continue
        if (gradient is None) != (reference is None):
            which = "a narrow subnet" if gradient is None else "the full model"
            return f"{which} gives no gradient to {name}, the other does; does something keep a reference to the model?"
        if gradient is None or reference is None:
            continue
        gradient.sub_(take(reference, cut))
        distance = gradient.abs() if gradient.is_complex() else gradient.abs_()
        off = float(distance.max()) if gradient.numel() else 0.0
        if not off <= tolerance * max(largest, 1e-12):
            return (
                f"a narrow subnet's gradient of {name} differs by {off / max(largest, 1e-12):.1e} of the largest from "
                f"the full model's, expected at most {tolerance:.0e}; {_REMEDY}"
            )
    return None


def _in_double(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, bool]:
    """Return model and inputs in double precision and True; if that does not run, unchanged and False."""
    doubled = _double(copied(model))
    wide = map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)
    try:
        with without_side_effects(doubled):
            call(doubled, wide)
    except Exception:
        return model, inputs, False
    return doubled, wide, True


def _double(model: nn.Module) -> nn.Module:
    model.double()._apply(lambda t: t.to(torch.complex128) if t.is_complex() else t)  # type: ignore[no-untyped-call]
    return model


def _off(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest element of ``b``."""
    if not a.numel():
        return 0.0
    a, b = (t.to(torch.float64) for t in (a.detach(), b.detach()))
    return float((a - b).abs().max()) / max(1e-6, float(b.abs().max()))
