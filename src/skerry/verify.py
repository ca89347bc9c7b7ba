"""Check that a plan means what it says for a model: a narrow subnet computes what the masked full model computes."""

import torch
from torch import Tensor, nn

from skerry.plan import Axis, Plan
from skerry.subnet import extract, masked

_REMEDY = (
    "a module over it is in no rule, or takes statistics across it (layer norm, group norm), or hard-codes its width, "
    "or it is added to another axis (two that are added must be one axis); mend the rules, or leave the axis whole"
)


@torch.no_grad()
def verify(model: nn.Module, plan: Plan, inputs: Tensor, *, tolerance: float = 1e-3) -> None:
    """Raise unless, axis by axis, half the units give the output of ``model`` with the other half set to zero.

    In evaluation mode. ``tolerance`` is relative to the largest output.

    Raises:
        ValueError: naming the axis for which it is not so, and what to do.
    """
    everything = torch.arange(plan.num_units)
    for axis in plan.axes:
        units = everything[_kept(axis, plan.num_units)]
        expected = masked(model, plan, units).eval()(inputs)
        narrow = extract(model, plan, units).eval()
        entered = _note_entered(narrow)
        try:
            got = narrow(inputs)
        except (RuntimeError, ValueError, IndexError) as error:
            where, said = entered[-1] or "the model itself", str(error).splitlines()[0]
            raise ValueError(
                f"axis '{axis.name}': a narrow subnet does not run, at or after {where} ({said}); {_REMEDY}"
            ) from error
        if got.shape != expected.shape:
            shapes = f"{tuple(got.shape)}, expected {tuple(expected.shape)}"
            raise ValueError(f"axis '{axis.name}': a narrow subnet's output has shape {shapes}; {_REMEDY}")
        off = float((got - expected).abs().max()) / max(1e-6, float(expected.abs().max()))
        if not off <= tolerance:
            raise ValueError(
                f"axis '{axis.name}': a narrow subnet's output differs by {off:.1e} of its size from the full model's "
                f"with the other units at zero, expected at most {tolerance:.0e}; {_REMEDY}"
            )


def _note_entered(model: nn.Module) -> list[str]:
    """Return a list to which each submodule of ``model`` adds its name when it begins to run."""
    entered = [""]
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: entered.append(name))
    return entered


def _kept(axis: Axis, num_units: int) -> Tensor:
    """All units but every second one of ``axis``."""
    kept = torch.ones(num_units, dtype=torch.bool)
    kept[axis.start + 1 : axis.start + axis.num_units : 2] = False
    return kept
