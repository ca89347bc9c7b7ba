"""Verify a plan: check that a narrow subnet computes what the masked full model computes."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from skerry.discovery.forward_contexts import Running, after_each, first_line
from skerry.discovery.hard_coded_widths import some_units
from skerry.model.inputs import Inputs, call, map_tensors, tensors_of
from skerry.model.tensors import fill_, named_tensors, skeleton
from skerry.plan.table import Plan
from skerry.randomness import generator, own_random_state
from skerry.subnet.adapters import remedy
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract, plan_of_subnet
from skerry.subnet.masked import masked
from skerry.subnet.slicing import take

_REMEDY = (
    "a module over it is in no rule, or takes statistics across it (layer norm, group norm), or it is added to another "
    "axis (two that are added must be one axis), or a patch is wrong; fix that, or leave the axis whole (plan.without)"
)


def verify(model: nn.Module, plan: Plan, example_inputs: Inputs, *, tolerance: float = 1e-4) -> None:
    """Check that a subnet of ``plan`` computes what ``model`` computes when nothing reads the units it does not have.

    The subnet has about 2 of 11 units of each axis. Outputs and gradients are compared in evaluation mode, and in
    double precision if the model runs in it. If they differ, each axis is checked alone, to name the wrong one. This
    works on copies: it takes twice the model's memory and two forwards and backwards.

    Args:
        model: the full model; not changed.
        plan: its plan.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        tolerance: the largest allowed difference, relative to the largest element of each output, and of all gradients;
            at least 1e-2 where double precision does not run.

    Raises:
        ValueError: the subnet does not run, or computes something else; the message names axis, module and tensor, and
            says what to do.

    Example:
        >>> from skerry.discovery import discover
        >>> model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 8)
        >>> verify(model, discover(model, x), x)
    """
    plan.check(model)
    found = _mismatch(model, plan, some_units(plan), example_inputs, tolerance)
    if found is None:
        return
    for axis in plan.axes:
        others = torch.ones(plan.num_units, dtype=torch.bool)
        others[axis.start : axis.start + axis.num_units] = False
        others[some_units(plan)] = True
        alone = _mismatch(model, plan, others.nonzero().flatten(), example_inputs, tolerance)
        if alone is not None:
            raise ValueError(f"axis '{axis.name}': {alone}")
    raise ValueError(f"axes {', '.join(axis.name for axis in plan.axes[:4])}, ... together: {found}")


def verify_small(model: nn.Module, plan: Plan, example_inputs: Inputs) -> None:
    """Verify a small net with random values, made of the modules of ``model``, which may be on the meta device.

    The net has the first few units of each axis. It takes the memory of these and of all that is not dealt out.

    Args:
        model: the full model; not changed.
        plan: its plan.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        ValueError: as ``verify``.
    """
    small, its_plan = _small(model, plan)
    small.eval()
    running = Running(small)
    try:
        with own_random_state(), torch.no_grad(), running.tracked():
            call(small, example_inputs)
    except Exception as error:
        raise ValueError(_does_not_run(small, running.innermost, error)) from error
    verify(small, its_plan, example_inputs)


def _small(model: nn.Module, plan: Plan, most_units: int = 11) -> tuple[nn.Module, Plan]:
    units = torch.cat(
        [torch.arange(axis.start, axis.start + min(most_units, axis.num_units)) for axis in plan.axes]
        or [torch.empty(0, dtype=torch.int64)]
    )
    rng = generator("small")

    def value(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        low = 0.5 if tensor.dim() < 2 else -0.5  # a variance, for example, must be positive
        return torch.empty(tensor.shape, dtype=tensor.dtype).uniform_(low, low + 1, generator=rng)

    small = extract(skeleton(model), plan, units)
    return fill_(small, {n: value(t) for n, t in named_tensors(small).items()}), plan_of_subnet(plan, units)


def _mismatch(model: nn.Module, plan: Plan, units: Tensor, inputs: Inputs, tolerance: float) -> str | None:
    """Return in words how the subnet of ``units`` differs from the masked full model, None if it does not."""
    full, inputs, exact = _in_double(masked(model, plan, units).eval(), inputs)
    narrow = extract(model, plan, units).eval()
    if exact:
        narrow = narrow.double()
    else:
        tolerance = max(tolerance, 1e-2)
    running = Running(narrow)
    seen_narrow: dict[str, Tensor] = {}
    seen_full: dict[str, Tensor] = {}

    def run(net: nn.Module, seen: dict[str, Tensor]) -> list[Tensor]:
        """Return the outputs of ``net``, and keep in ``seen`` the first output of each submodule, in order."""

        def keep(name: str, args: Any, output: Any) -> None:
            first = next(tensors_of(output), None)
            if first is not None and first.is_floating_point():
                seen.setdefault(name, first.detach())

        torch.manual_seed(0)
        with after_each({name: module for name, module in net.named_modules() if name}, keep):
            return list(tensors_of(call(net, inputs)))

    with own_random_state(), torch.enable_grad():
        expected = run(full, seen_full)
        try:
            with running.tracked():
                got = run(narrow, seen_narrow)
        except Exception as error:
            return _does_not_run(model, running.innermost, error)
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
    return _gradient_mismatch(plan, units, narrow, full, got, expected, tolerance) if exact else None


def _does_not_run(model: nn.Module, where: str, error: Exception) -> str:
    what_to_do = remedy(where, model.get_submodule(where)) if where else _REMEDY
    if where and isinstance(model.get_submodule(where), nn.modules.batchnorm._BatchNorm):
        what_to_do = (
            f"if the plan has no rule for it, add one: '{where}': Out(the axis before it); else leave the axis whole"
        )
    return f"a narrow subnet does not run, in {where or 'the model itself'} ({first_line(error)}); {what_to_do}"


def _gradient_mismatch(
    plan: Plan, units: Tensor, narrow: nn.Module, full: nn.Module, got: list[Tensor], expected: list[Tensor], tol: float
) -> str | None:
    for outputs in (got, expected):
        loss = sum(
            (t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).view_as(t)).sum()
            for t in outputs
            if t.is_floating_point() and t.requires_grad
        )
        if isinstance(loss, Tensor):
            loss.backward()  # type: ignore[no-untyped-call]
    cuts, wide = Cuts(plan, units), dict(full.named_parameters())
    largest = max((float(p.grad.abs().max()) for p in wide.values() if p.grad is not None and p.numel()), default=0.0)
    for name, parameter in narrow.named_parameters():
        reference = wide[name].grad
        cut = cuts.of(name)
        if cut is None:
            continue
        if (parameter.grad is None) != (reference is None):
            which = "a narrow subnet" if parameter.grad is None else "the full model"
            return f"{which} gives no gradient to {name}, the other does; does something keep a reference to the model?"
        if parameter.grad is None or reference is None:
            continue
        off = float((parameter.grad - take(reference, cut)).abs().max()) if parameter.numel() else 0.0
        if not off <= tol * max(largest, 1e-12):
            return (
                f"a narrow subnet's gradient of {name} differs by {off / max(largest, 1e-12):.1e} of the largest from "
                f"the full model's, expected at most {tol:.0e}; {_REMEDY}"
            )
    return None


def _in_double(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, bool]:
    """Return model and inputs in double precision and True; if that does not run, unchanged and False."""
    doubled = copy.deepcopy(model).double()
    wide = map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)
    try:
        with torch.no_grad():
            call(doubled, wide)
    except Exception:
        return model, inputs, False
    return doubled, wide, True


def _off(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest element of ``b``."""
    if not a.numel():
        return 0.0
    a, b = (t.to(torch.float64) for t in (a.detach(), b.detach()))
    return float((a - b).abs().max()) / max(1e-6, float(b.abs().max()))
