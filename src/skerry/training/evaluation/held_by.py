"""Which processes hold the test set: what they agree on at the start, and what the others know of one that is apart."""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.model.inputs import Inputs
from skerry.runtimes.close_values import agree_on_values
from skerry.runtimes.runtime import Runtime
from skerry.training.evaluation.test_set import Test, as_compared, some_inputs

_IN_WORDS = {"": "no test set", **{how: f"one with held_by='{how}'" for how in ("all", "one", "parts")}}


@dataclass(frozen=True, eq=False, kw_only=True)
class Elsewhere:
    """What a process knows of a test set that only another one holds: all but the data.

    Attributes:
        example: zeros in the shapes of one sample's inputs, for the forwards in which all processes take part.
        num_batches: forwards of an evaluation.
        every: as in ``Test``.
        metrics: their names.
    """

    example: Inputs
    num_batches: int
    every: int
    metrics: tuple[str, ...]


def agree_on_test(test: Test | None, runtime: Runtime) -> Test | Elsewhere | None:
    """Return what this process has or knows of the test set; every process must call it.

    Raises:
        ValueError: processes have other test sets, or not as many as ``Test.held_by`` says; in all of them.
    """
    if runtime.num_processes == 1:
        return test
    held = runtime.gather(test.held_by if test else "")
    mine, holders = held[runtime.rank], [rank for rank, how in enumerate(held) if how]
    if set(held) == {"one", ""} and len(holders) == 1:
        known = json.loads(runtime.gather(json.dumps(_known(test)) if test else "")[holders[0]])
        return test or Elsewhere(**{**known, "example": _zeros(known["example"]), "metrics": tuple(known["metrics"])})
    if len(set(held)) > 1 or mine == "one":
        rank = next(r for r, how in enumerate(held) if r != runtime.rank and (how != mine or how == "one"))
        raise ValueError(
            f"rank {runtime.rank}: test: {_IN_WORDS[mine]} here and {_IN_WORDS[held[rank]]} on rank {rank}; give every "
            "process the same (held_by='all'), exactly one process one (held_by='one', test=None in the others), or "
            "each its own part (held_by='parts')"
        )
    if test is not None:
        runtime.agree(as_compared(test))
        if test.held_by == "all":
            agree_on_values(runtime, some_inputs(test), "has", "give all processes the same test set")
    return test


def _known(test: Test) -> dict[str, Any]:
    """Return what the other processes learn, for JSON."""
    num_batches = math.ceil(len(test.labels) / test.batch_size)
    metrics, example = list(test.metrics or ()), _shapes(test.inputs)
    return {"example": example, "num_batches": num_batches, "every": test.every, "metrics": metrics}


def _shapes(inputs: Any) -> Any:
    """Return the structure of inputs for JSON: a tensor as its dtype and the shape of a sample."""
    if isinstance(inputs, Tensor):
        return {"dtype": str(inputs.dtype).removeprefix("torch."), "shape": list(inputs.shape[1:])}
    if isinstance(inputs, dict):
        return {"named": {name: _shapes(value) for name, value in inputs.items()}}
    if isinstance(inputs, tuple | list):
        return [_shapes(value) for value in inputs]
    raise ValueError(
        f"test: held_by='one' and inputs with {type(inputs).__name__}; expected tensors, in tuples or dicts"
    )


def _zeros(shapes: Any) -> Any:
    """Return one sample of zeros with the structure that ``_shapes`` returned."""
    if isinstance(shapes, list):
        return [_zeros(value) for value in shapes]
    if "named" in shapes:
        return {name: _zeros(value) for name, value in shapes["named"].items()}
    return torch.zeros(1, *shapes["shape"], dtype=getattr(torch, shapes["dtype"]))
