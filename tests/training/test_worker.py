"""Local steps: against plain loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import blobs

import skerry
from skerry.training.steps.rates import scaled_rates
from skerry.training.worker import Worker, local_steps


def test_local_steps_are_a_plain_loop_with_factors():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    batches = [(torch.randn(5, 3), torch.randint(0, 2, (5,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    worker = Worker(model, optimizer, scaled_rates(optimizer, [1.0, 0.5, 0.1]))
    local_steps(worker, F.cross_entropy, batches)
    losses = []
    for (x, y), factor in zip(batches, [1.0, 0.5, 0.1], strict=True):
        loss = F.cross_entropy(other(x), y)
        losses.append(loss.item())
        for p, g in zip(other.parameters(), torch.autograd.grad(loss, list(other.parameters())), strict=True):
            p.data -= 0.5 * factor * g
    assert worker.loss == pytest.approx(sum(losses) / 3)
    torch.testing.assert_close(model.weight, other.weight)


def test_local_steps_stop_at_the_first_loss_that_is_not_finite():
    model, seen = nn.Linear(3, 2), []

    def batches():
        for k in range(5):
            seen.append(k)
            yield torch.full((4, 3), math.nan if k == 1 else 1.0), torch.zeros(4, dtype=torch.int64)

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    worker = Worker(model, optimizer, scaled_rates(optimizer, [1.0] * 5))
    local_steps(worker, F.cross_entropy, batches())
    assert not math.isfinite(worker.loss)
    assert seen == [0, 1]


def test_state_of_a_parameter_without_dims_travels():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.gate = nn.Linear(9, 8), nn.Linear(8, 4), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.gate * self.down(torch.relu(self.up(x)))

    model = Gate()
    plan = skerry.discover(model, torch.randn(4, 9))
    algorithm = skerry.ist(3, local_steps=2, optimizer_state="travel")
    for optimizer in (
        lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        lambda net: torch.optim.AdamW(net.parameters(), 0.01),
    ):
        skerry.train(
            model, F.cross_entropy, blobs(3), plan=plan, algorithm=algorithm, optimizer=optimizer, num_rounds=2
        )
    assert model.gate.isfinite()
    assert model.gate != 1  # it was trained


def test_inputs_keep_their_kind():
    from collections import namedtuple

    from skerry.model.inputs import call, map_tensors

    Pair = namedtuple("Pair", "x y")
    doubled = map_tensors(lambda t: t * 2, {"a": Pair(torch.ones(2), 3), "b": [torch.ones(1)]})
    assert isinstance(doubled["a"], Pair)
    assert (doubled["a"].x.tolist(), doubled["a"].y, doubled["b"][0].tolist()) == ([2, 2], 3, [2])
    assert call(nn.Bilinear(2, 3, 1), (torch.ones(1, 2), torch.ones(1, 3))).shape == (1, 1)
