"""Weights between two dealt units that no worker ever holds together: they stay as they were initialized."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from skerry.partitions.assignment import Assignment
from skerry.plan.dims import DealtDim
from skerry.plan.table import Plan
from skerry.randomness import generator

MAX_UNITS = 1024
"""Units that are looked at, over all axes: a sample, drawn evenly."""
MAX_ROUNDS = 32
"""Rounds that are looked at, the first ones. What is left after all is extrapolated from the second half of them."""


def untrained_pairs(
    plan: Plan, numel: Mapping[str, int], assignment: Callable[[int], Assignment], num_rounds: int
) -> tuple[float, str]:
    """Return the fraction of the weights between two dealt units that are never trained, and where most of them are.

    It is estimated where there are many units or rounds: from a sample of units, and from the first rounds. With units
    dealt anew the fraction left falls by the same factor each round; with units that stay it does not fall.

    Args:
        plan: of what is trained.
        numel: the size of each parameter.
        assignment: who holds what in a round.
        num_rounds: of the training.
    """
    sizes = torch.tensor([axis.num_units for axis in plan.axes], dtype=torch.int64)
    axis_of = torch.arange(len(plan.axes)).repeat_interleave(sizes)
    weights = torch.zeros(len(plan.axes), len(plan.axes), dtype=torch.float64)  # between two axes
    for name, size in numel.items():
        pair = {dim.role: dim for dim in plan.dims.get(name, ()) if dim is not None}
        if len(pair) == 2:
            out, into = (_axis_shares(plan, pair[role], axis_of) for role in ("out", "in"))
            weights += size * out[:, None] * into
    if not bool(weights.any()):
        return 0.0, ""
    units = _sample(plan)
    own = axis_of[units]
    member = one_hot(own, len(plan.axes)).double()
    pairs = (member.sum(0)[:, None] * member.sum(0)).clamp(min=1)
    together = torch.zeros(len(units), len(units), dtype=torch.bool)
    left, by_pair = [1.0], weights
    for round in range(min(num_rounds, MAX_ROUNDS)):
        held = assignment(round).held[:, units].float()
        together |= held.mT @ held > 0
        ever = together.diagonal()  # a unit that no worker holds at all is a matter of coverage
        never = ever[:, None] & ever & ~together
        by_pair = weights * (member.mT @ never.double() @ member) / pairs
        left.append(float(by_pair.sum() / weights.sum()))
        if left[-1] == 0:
            break
    rate = left[-1] / left[len(left) // 2] if left[-1] else 0.0  # over half of the rounds that were looked at
    fraction = left[-1] * rate ** ((num_rounds - len(left) + 1) / max(1, len(left) - 1 - len(left) // 2))
    a, b = divmod(int(by_pair.argmax()), len(plan.axes))
    one, other = plan.axes[a], plan.axes[b]
    where = f"within axis '{one.name}'" if a == b else f"between axes '{other.name}' and '{one.name}'"
    return fraction, f"{where} ({one.num_units} units)" if a == b else where


def _axis_shares(plan: Plan, dim: DealtDim, axis_of: Tensor) -> Tensor:
    """Return for each axis the fraction of a dim's indices that are of it, (num_axes,) float64."""
    counts = axis_of[dim.units[dim.units >= 0].long()].bincount(minlength=len(plan.axes))
    return counts.double() / len(dim.units)


def _sample(plan: Plan) -> Tensor:
    """Return the ids of at most ``MAX_UNITS`` units, at least two of each axis."""
    most = max(2, MAX_UNITS // max(1, len(plan.axes)))
    picked = []
    for axis in plan.axes:
        order = torch.randperm(axis.num_units, generator=generator(0, "untrained pairs", axis.name))
        picked.append(axis.start + order[:most].sort().values)
    return torch.cat(picked)
