"""METIS: parts of about equal size that few edges join."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def partition(edge_index: Tensor, nodes: Tensor, num_parts: int) -> list[Tensor]:
    """Return the parts of ``nodes`` that METIS finds; none is empty, so there may be fewer than ``num_parts``.

    Edges count in both directions, and self loops do not.

    Raises:
        ValueError: pymetis is not installed.
    """
    if num_parts == 1 or len(nodes) <= 1:
        return [nodes] if len(nodes) else []
    try:
        import pymetis
    except ImportError:
        raise ValueError("clusters need METIS; run: pip install 'skerry[graphs]' (pymetis)") from None
    num = int(edge_index.max()) + 1 if edge_index.numel() else 0
    place = torch.full((max(num, int(nodes.max()) + 1),), -1)
    place[nodes] = torch.arange(len(nodes))
    ends = place[edge_index]
    ends = ends[:, (ends >= 0).all(0) & (ends[0] != ends[1])]
    both = torch.cat([ends, ends.flip(0)], 1)
    pairs = torch.unique(both[0] * len(nodes) + both[1])  # sorted, each once
    source, target = pairs // len(nodes), pairs % len(nodes)
    starts = np.zeros(len(nodes) + 1, dtype=np.int64)
    starts[1:] = source.bincount(minlength=len(nodes)).cumsum(0).numpy()
    _, found = pymetis.part_graph(min(num_parts, len(nodes)), pymetis.CSRAdjacency(starts, target.numpy()))
    part = torch.tensor(found)
    order = part.argsort(stable=True)
    ends_at = [0, *part.bincount(minlength=num_parts).cumsum(0).tolist()]
    return [nodes[order[a:b]] for a, b in pairwise(ends_at) if b > a]
