"""Costs: bytes against counting every element by hand, operations against formulas, no side effects."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from zoo import cnn, mlp

from skerry import Disjoint, Everything, Overlapping
from skerry.cost import due_bytes, step_cost
from skerry.plan import named_tensors


def _slow_due_bytes(plan, tensors, now, then):
    """Walk over every element and send it where it has to go."""
    sends = 0.0
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        dims = plan.dims.get(name, (None,) * tensor.dim())
        for index in np.ndindex(*tensor.shape):
            units = [int(d.units[i]) for i, d in zip(index, dims, strict=True) if d is not None and d.units[i] >= 0]
            have = {w for w in range(now.num_workers) if all(now.held[w, u] for u in units)}
            want = {w for w in range(then.num_workers) if all(then.held[w, u] for u in units)}
            free = sum(not (now.held[:, u].all() and then.held[:, u].all()) for u in units)
            sends += 2 * max(0, len(have) - 1) * tensor.element_size()
            sends += len(want - have) * tensor.element_size()
            if free > 1 and have - want:
                sends += tensor.element_size()
    return sends / now.num_workers


@settings(max_examples=20)
@given(st.integers(0, 4), st.integers(1, 5), st.sampled_from(["disjoint", "slow", "core", "uneven", "two", "all"]))
def test_due_bytes_against_a_walk_over_elements(round, workers, kind):
    model, plan, _ = mlp(hidden=(5, 6))
    partition = {
        "disjoint": Disjoint(workers),
        "slow": Disjoint(workers, reshuffle=0.3),
        "core": Disjoint(workers, core=0.5),
        "uneven": Disjoint(workers, capacities=tuple(range(1, workers + 1))),
        "two": Overlapping(workers, min(2, workers)),
        "all": Everything(workers),
    }[kind]
    now, then = (partition.assign(plan.axes, round + k) for k in (0, 1))
    tensors = named_tensors(model)
    assert due_bytes(plan, tensors, now, then) == pytest.approx(_slow_due_bytes(plan, tensors, now, then))


def test_what_stays_does_not_move_and_replicas_cost_a_ring():
    model, plan, _ = cnn()
    tensors = {n: t for n, t in named_tensors(model).items() if t.is_floating_point()}
    same = Disjoint(4).assign(plan.axes, 0)
    shared = sum(t.numel() * 4 for n, t in tensors.items() if n not in plan.dims)
    assert due_bytes(plan, tensors, same, same) == pytest.approx(2 * 3 / 4 * shared)
    full = sum(t.numel() * 4 for t in tensors.values())
    everything = Everything(4).assign(plan.axes, 0)
    assert due_bytes(plan, tensors, everything, everything) == pytest.approx(2 * 3 / 4 * full)


def test_a_slow_reshuffle_saves_most_of_the_bytes():
    model, plan, _ = mlp(hidden=(200, 200))
    full, slow = (
        due_bytes(plan, named_tensors(model), p.assign(plan.axes, 1), p.assign(plan.axes, 2))
        for p in (Disjoint(4), Disjoint(4, reshuffle=0.1))
    )
    assert slow < 0.2 * full


def test_step_cost_of_an_mlp_by_formula_and_without_side_effects():
    model, _, _ = mlp(hidden=(13, 10))
    before = {n: t.clone() for n, t in named_tensors(model).items()}
    rng = torch.get_rng_state()
    batch = (torch.randn(16, 9), torch.randint(0, 4, (16,)))
    rng_after_batch = torch.get_rng_state()
    cost = step_cost(model, F.cross_entropy, batch, lambda p: torch.optim.Adam(p, 1e-3))
    assert torch.equal(torch.get_rng_state(), rng_after_batch)
    assert not torch.equal(rng, rng_after_batch)
    # Forward and both gradients are 2 * batch * in * out each; the input needs no gradient.
    assert cost.flop == 2 * 16 * (2 * 9 * 13 + 3 * 13 * 10 + 3 * 10 * 4)
    parameters = 9 * 13 + 13 * 10 + 10 * 4 + 4 + 2 * (13 + 10)
    assert cost.parameters == parameters
    assert cost.gradients == 4 * parameters
    assert cost.optimizer == 8 * parameters + 4 * len(list(model.parameters()))  # two moments, and a count a tensor
    assert cost.weights == 4 * parameters + 2 * 4 * (13 + 10) + 2 * 8
    assert cost.activations > 4 * 16 * (9 + 13 + 10)
    assert all(torch.equal(t, before[n]) for n, t in named_tensors(model).items())


def test_a_model_that_looks_at_values_is_measured_on_a_real_copy():
    class Peeks(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)

    model, batch = Peeks(9, 4), (torch.randn(16, 9), torch.randint(0, 4, (16,)))
    before = model.weight.clone()
    cost = step_cost(model, F.cross_entropy, batch, lambda p: torch.optim.SGD(p, 0.1))
    assert cost.flop == 2 * 2 * 16 * 9 * 4
    assert torch.equal(model.weight, before)
