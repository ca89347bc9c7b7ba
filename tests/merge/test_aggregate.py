"""Aggregation: checked element by element against a slow, obvious loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlapping import Overlapping
from zoo import mlp

from skerry.merge import aggregate_
from skerry.merge.aggregate import is_finite
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint, Everything
from skerry.subnet import extract


def _slow_aggregate(full, plan, assignment, pieces, weights):
    """For every element of every tensor: the mean by weight over the pieces that hold it, or what it was."""
    result = {}
    for name, tensor in full.items():
        dims = plan.dims.get(name, (None,) * tensor.dim())
        out = tensor.clone()
        for index in np.ndindex(*tensor.shape):
            values, held_by = [], []
            for worker, piece in enumerate(pieces):
                if piece is None:
                    continue
                place = []
                for i, dealt in zip(index, dims, strict=True):
                    unit = -1 if dealt is None else int(dealt.units[i])
                    if unit >= 0 and not assignment.held[worker, unit]:
                        break
                    if dealt is None:
                        place.append(i)
                    else:
                        place.append(sum(bool(assignment.held[worker, u]) for u in dealt.units[:i].tolist()))
                else:
                    held_by.append(weights[worker])
                    values.append(weights[worker] * piece[name][tuple(place)].double())
            if values:
                out[tuple(index)] = (torch.stack(values).sum() / sum(held_by)).to(tensor.dtype)
        result[name] = out
    return result


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["disjoint", "uneven", "core", "overlapping", "everything"]),
    workers=st.integers(1, 4),
    round=st.integers(0, 3),
    refused=st.sets(st.integers(0, 3)),
    weights=st.none() | st.lists(st.integers(1, 1000), min_size=4, max_size=4),
)
def test_against_a_loop_over_elements(kind, workers, round, refused, weights):
    model, plan, _ = mlp(hidden=(5, 4))
    partition = {
        "disjoint": Disjoint(workers),
        "uneven": Disjoint(workers, capacities=tuple(range(1, workers + 1))),
        "core": Disjoint(workers, core=0.4),
        "overlapping": Overlapping(workers, max(1, workers - 1)),
        "everything": Everything(workers),
    }[kind]
    assignment = partition.assign(plan.axes, round)
    pieces = []
    for worker in range(workers):
        tensors = named_tensors(extract(model, plan, assignment.units(worker)))
        trained = {n: t + torch.randn(t.shape) if t.is_floating_point() else t + 3 for n, t in tensors.items()}
        pieces.append(None if worker in refused else trained)
    full = named_tensors(model)
    expected = _slow_aggregate(full, plan, assignment, pieces, weights or [1] * workers)
    aggregate_(full, plan, assignment, pieces, weights)
    for name, tensor in full.items():
        if kind in ("disjoint", "uneven") and name in plan.dims:
            assert torch.equal(tensor, expected[name])  # one holder: copied, to the bit
        else:
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("workers", [2, 3, 5, 7])
@pytest.mark.parametrize("weights", [None, [3, 100, 7, 2**28, 12_345, 1, 999_983]])
def test_equal_pieces_average_to_themselves_to_the_bit(workers, weights):
    model, plan, _ = mlp()
    before = {n: t.clone() for n, t in named_tensors(model).items()}
    for partition in (Everything(workers), Disjoint(workers, core=0.3), Overlapping(workers, workers - 1)):
        assignment = partition.assign(plan.axes, 0)
        pieces = [named_tensors(extract(model, plan, assignment.units(w))) for w in range(workers)]
        aggregate_(named_tensors(model), plan, assignment, pieces, weights)
        for name, tensor in named_tensors(model).items():
            assert torch.equal(tensor, before[name])
            if tensor.is_floating_point():
                assert torch.equal(tensor.signbit(), before[name].signbit())


def test_finite():
    assert is_finite({"a": torch.ones(3), "n": torch.tensor(4)})
    assert not is_finite({"a": torch.tensor([1.0, float("nan")])})
    assert not is_finite({"a": torch.tensor([1.0, float("inf")])})
