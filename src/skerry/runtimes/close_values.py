"""Values that must be the same in all processes but for rounding."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from skerry.runtimes.runtime import Runtime


def agree_on_values(runtime: Runtime, values: Mapping[str, list[float]], verb: str, remedy: str) -> None:
    """Raise ValueError, in all processes, if another one has other ``values``, by name and in the same numbers."""
    of_all = [json.loads(text) for text in runtime.gather(json.dumps([*values.values()]))]
    for name, *of_name in zip(values, *of_all, strict=True):
        far = [rank for rank, theirs in enumerate(of_name) if not _close(theirs, of_name[0])]
        if far:
            rank = 0 if runtime.rank in far else far[0]
            pairs = zip(of_name[runtime.rank], of_name[rank], strict=True)
            here, there = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
            raise ValueError(
                f"rank {runtime.rank}: {name} {verb} {here:.4g} here and {there:.4g} on rank {rank}; {remedy}"
            )


def _close(one: Any, other: Any) -> bool:
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=1e-3, atol=1e-5, equal_nan=True)
