"""What must be the same in all processes of a training: in words by name, to be compared before they train.

Numbers that each machine computes are compared to a few digits. The same seed gives weights that differ by rounding on
other processors, by up to 2e-6 for a normal distribution.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from skerry.model.inputs import Inputs, tensors_of
from skerry.runtimes.close_values import agree_on_values
from skerry.runtimes.runtime import Runtime
from skerry.subnet.index import Index
from skerry.training.settings import Settings
from skerry.training.steps.optimizer import optimizer_of, small_copy
from skerry.training.steps.rates import SchedulerRates
from skerry.training.worker import Data, OptimizerFn
from skerry.weights.source import Source

_HOW = ("foreach", "fused", "capturable")  # how an optimizer computes, which may suit the machine
_NUM_READ = 8  # tensors of which some values are compared


def session_in_words(given: Settings, callbacks: Sequence[object] = ()) -> dict[str, str]:
    """Return what must be the same of the settings of a session, and of its callbacks."""
    model, checkpoints = given.model, given.checkpoints
    values = {
        **{name: getattr(given, name) for name in ("algorithm", "num_rounds", "seed", "loss_fn", "max_bad_rounds")},
        "optimizer": _of_optimizer(given.optimizer, model),
        "schedule": " ".join(f"{given.schedule(k / 8):.6g}" for k in range(8)),
        "steps": replace(given.steps, lr_scheduler=None),
        "lr_scheduler": _of_scheduler(given),
        "callbacks": callbacks,
        "checkpoints": checkpoints and {"resume": checkpoints.resume, "run": checkpoints.run},
        "axes": {axis.name: axis.num_units for axis in given.plan.axes},
        "model": {n: _kind(t) for n, t in [*model.named_parameters(), *model.named_buffers()]},
        "plan": given.plan.digest(),
    }
    return dict(in_words(values))


def data_in_words(
    data: Data, inputs: Inputs | None, logit_adjustment: Tensor | None, calibration_samples: int
) -> dict[str, str]:
    """Return what must be the same of the data; ``inputs``: of some samples."""
    values = {
        "data.batch_size": getattr(data, "batch_size", None),
        "data.inputs": [f"{str(t.dtype).removeprefix('torch.')} of {t.dim()} dims" for t in tensors_of(inputs)],
        "logit_adjustment": None if logit_adjustment is None else f"{logit_adjustment.shape[1]} classes",
        "calibration_samples": calibration_samples,
    }
    return dict(in_words(values))


def agree_on_start(runtime: Runtime, source: Source, sizes: Mapping[str, Tensor]) -> None:
    """Raise ValueError, in all processes, if another one starts from other values; some values are compared.

    Args:
        runtime: of all processes.
        source: where values come from here.
        sizes: what it has, by name, on any device.
    """
    if runtime.num_processes == 1:
        return
    floats = [name for name, tensor in sizes.items() if tensor.is_floating_point() and tensor.numel()]
    names = [name for name in floats if sizes[name].dim() > 1] or floats
    some = {name: _some(source, name, sizes[name]) for name in names[:: max(1, len(names) // _NUM_READ)]}
    remedy = "make the model from the same seed (torch.manual_seed) or files in all processes"
    agree_on_values(runtime, some, "starts with", remedy)


def in_words(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the parts of ``value`` by dotted name, as text that is the same in another process; no addresses."""
    own: Mapping[str, Any] = {}
    if isinstance(value, np.generic | np.ndarray | Tensor) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, Mapping):
        own = {str(key): item for key, item in value.items()}
    elif isinstance(value, partial):
        own = {"": value.func, "args": value.args, **value.keywords}
    elif is_dataclass(value) and not isinstance(value, type):
        own = {"": type(value), **{field.name: getattr(value, field.name) for field in fields(value)}}
    elif isinstance(value, Tensor):
        yield name, f"{value.dtype} {tuple(value.shape)}"
    elif isinstance(value, tuple | list):
        yield name, ", ".join(text for item in value for _, text in in_words(item))
    elif hasattr(value, "__qualname__"):  # a function or a class
        yield name, value.__qualname__
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, str(value)
    else:
        own = {
            "": type(value),
            **{k: v for k, v in getattr(value, "__dict__", {}).items() if isinstance(v, bool | int | float | str)},
        }
    for key, item in own.items():
        if not str(key).startswith("_"):
            yield from in_words(item, ".".join(filter(None, (name, str(key)))))


def _of_optimizer(make: OptimizerFn, model: nn.Module) -> dict[str, object]:
    """Return the class and the settings of an optimizer."""
    made = optimizer_of(make, small_copy(model))
    groups = getattr(made, "param_groups", ())
    own = [{k: v if k != "params" else len(v) for k, v in group.items() if k not in _HOW} for group in groups]
    return {"": type(made), **(own[0] if len(own) == 1 else dict(enumerate(own)))}


def _of_scheduler(given: Settings) -> str:
    """Return what a scheduler sets in some of the first thousand steps."""
    if given.steps.lr_scheduler is None:
        return "None"
    made = optimizer_of(given.optimizer, small_copy(given.model))
    rates = SchedulerRates(given.steps.lr_scheduler, given.num_steps).of_steps(made, 0, min(given.num_steps, 1000))
    return " ".join(f"{rates[k][0]['lr']:.6g}" for k in sorted({min(k, len(rates) - 1) for k in (0, 1, 10, 100, 1000)}))


def _kind(tensor: Tensor) -> str:
    kind = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return f"{kind}, frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else kind


def _some(source: Source, name: str, size: Tensor) -> list[float]:
    """Return four values of the middle row of a tensor, evenly spaced."""
    middle = size.shape[0] // 2 if size.dim() else 0
    row = source.read(name, (Index.run(middle, middle + 1), *[None] * (size.dim() - 1)) if size.dim() else ())
    flat = row.flatten().float()
    return flat[:: max(1, len(flat) // 4)][:4].tolist()
