"""The share of a unit: how likely a subnet has it, alone or beside another unit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.partitions.assignment import Partition
from skerry.plan.dims import Axis


@dataclass(frozen=True, eq=False)
class Share:
    """How likely a subnet has a unit.

    A weight that reads unit u to make unit v is trained in subnets that have both. In such a subnet, v sums over the
    units that are likely there *given v*, which for two units of one axis is less than a single unit's share: with one
    unit per worker no other unit is ever there.

    Attributes:
        alone: (num_units,) float64: the probability s_u that a subnet has unit u.
        beside: (num_axes, num_axes) float64: ``beside[a, b]`` is the probability that a subnet with a unit of axis a
            has a given other unit of axis b, for units with 0 < s < 1. With c_wa such units of axis a on worker w:
            sum_w c_wa c_wb / (N_b sum_w c_wa), and within one axis sum_w c_wa (c_wa - 1) / ((N_a - 1) sum_w c_wa).
        axis_of: (num_units,) int64: the axis of each unit, -1 for units with s = 0 or 1, which count alone.

    Example:
        >>> from skerry.partitions import Disjoint
        >>> share = Share.of(Disjoint(2), (Axis("a", 4), Axis("b", 6, start=4)), 0)
        >>> share.beside[0].tolist()  # one of the three others of its own axis; half of the other axis
        [0.3333333333333333, 0.5]
    """

    alone: Tensor
    beside: Tensor
    axis_of: Tensor

    @classmethod
    def of(cls, partition: Partition, axes: Sequence[Axis], round: int) -> "Share":
        """Return the shares of the units of ``axes``, over rounds like ``round``."""
        alone = partition.share(axes, round)
        dealt = (alone > 0) & (alone < 1)
        axis_of = torch.arange(len(axes)).repeat_interleave(torch.tensor([axis.num_units for axis in axes]).long())
        held = (partition.assign(axes, round).held & dealt).double()
        counts = torch.stack([held[:, axis.units].sum(1) for axis in axes], 1) if axes else held.new_zeros(1, 0)
        num = torch.tensor([float(dealt[axis.units].sum()) for axis in axes], dtype=torch.float64)
        pairs = counts.mT @ counts - counts.sum(0).diag()  # a unit is not beside itself
        possible = (num - torch.eye(len(axes), dtype=torch.float64)) * counts.sum(0)[:, None]
        return cls(alone, pairs / possible.clamp(min=1), axis_of.where(dealt, torch.tensor(-1)))

    @classmethod
    def independent(cls, alone: Tensor) -> "Share":
        """Return shares of units that are dealt independently of each other."""
        return cls(alone, alone.new_zeros(0, 0), torch.full_like(alone, -1, dtype=torch.int64))

    def factors(self, writes: Tensor, reads: Tensor) -> Tensor:
        """Return what to multiply each weight between two dealt dims by.

        Args:
            writes: (num_out,) int: the units that the weights make, -1 where an index is not dealt out.
            reads: (num_in,) int: the units that they read.

        Returns:
            (num_out, num_in) float64.
        """
        alone = torch.cat([self.alone, self.alone.new_ones(1)])[reads.long()]  # index -1 is the last
        axis_of = torch.cat([self.axis_of, torch.tensor([-1])])
        a, b = axis_of[writes.long()], axis_of[reads.long()]
        if not len(self.beside):
            return alone.expand(len(writes), -1)
        both = (a >= 0)[:, None] & (b >= 0)
        found = torch.where(both, self.beside[a][:, b], alone)
        return found.masked_fill(both & (writes[:, None] == reads), 1.0)
