"""Costs: operations and memory against formulas and against what is there, no side effects."""

import pytest
import torch
from together import together
from torch.nn import functional as F
from zoo import METHODS, MODELS, mlp

from skerry import Shards, ist, split, train
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint
from skerry.runtimes.runtime import RESTING
from skerry.training import worker
from skerry.training.cost import StepCosts, rank_memory, step_cost


def test_step_cost_of_an_mlp_by_formula_and_without_side_effects():
    model, _, _ = mlp(hidden=(13, 10))
    before = {n: t.clone() for n, t in named_tensors(model).items()}
    rng = torch.get_rng_state()
    batch = (torch.randn(16, 9), torch.randint(0, 4, (16,)))
    rng_after_batch = torch.get_rng_state()
    cost = step_cost(model, F.cross_entropy, batch, lambda net: torch.optim.Adam(net.parameters(), 1e-3))
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
    cost = step_cost(model, F.cross_entropy, batch, lambda net: torch.optim.SGD(net.parameters(), 0.1))
    assert cost.flop == 2 * 2 * 16 * 9 * 4
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("reads_values", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_step_of_an_optimizer_needs_no_memory_unless_it_reads_values(sparse, reads_values):
    took = []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            (weight, *_) = self.param_groups[0]["params"]
            took.append(type(weight.data).__name__)
            if reads_values:
                weight.grad.sum().item()
            return super().step(closure)

    model, x = torch.nn.Linear(9, 4), torch.randn(16, 9)
    before = model.weight.clone()
    batch = (x.to_sparse() if sparse else x, torch.randint(0, 4, (16,)))
    cost = step_cost(model, F.cross_entropy, batch, lambda net: Watched(net.parameters(), 1e-3, fused=True))
    assert cost.optimizer == 8 * 40 + 2 * 4
    assert cost.gradients == 4 * 40
    assert torch.equal(model.weight, before)
    assert ("Tensor" in took) == reads_values  # a real step


def test_random_numbers_of_a_forward_are_not_those_of_the_steps():
    class Skips(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if torch.rand([]).item() > 0.5 else 1.0)

    model, batch = Skips(9, 4), (torch.randn(16, 9), torch.randint(0, 4, (16,)))
    before = torch.get_rng_state()
    step_cost(model, F.cross_entropy, batch, lambda net: torch.optim.SGD(net.parameters(), 0.1))
    assert torch.equal(torch.get_rng_state(), before)


def test_measuring_costs_is_not_part_of_a_workers_time(monkeypatch):
    clock = [0.0]
    measured = StepCosts.of
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock[0])

    def slow(costs, subnet):
        clock[0] += 1000.0
        return measured(costs, subnet)

    monkeypatch.setattr(StepCosts, "of", slow)
    (model, plan, x), y = mlp(), torch.randint(0, 4, (16,))
    data = Shards(x, y, split(y, 2, "iid", seed=0), batch_size=4, seed=0)
    sgd = lambda net: torch.optim.SGD(net.parameters(), 0.1)  # noqa: E731
    result = train(
        model, F.cross_entropy, data, plan=plan, algorithm=ist(2, local_steps=2), optimizer=sgd, num_rounds=1
    )
    assert result.state.totals["local_s"] < 1000.0


def test_a_loss_that_a_forward_keeps_does_not_prevent_it():
    class Keeps(torch.nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            self.losses = [out.square().mean()]
            return out

    model, batch = Keeps(9, 4), (torch.randn(16, 9), torch.randint(0, 4, (16,)))
    kept = (model(batch[0]), model.losses[0])[1]
    cost = step_cost(model, F.cross_entropy, batch, lambda net: torch.optim.SGD(net.parameters(), 0.1))
    assert cost.flop >= 2 * 2 * 16 * 9 * 4
    assert model.losses[0] is kept


@pytest.mark.parametrize(
    "model_name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "mlp")]
)
@pytest.mark.parametrize("method", ["ist-slow-core", "ist-uneven-travel", "local_sgd-travel"])
def test_what_a_process_keeps_is_what_is_predicted(method, model_name):
    algorithm, (build, data) = METHODS[method].algorithm, MODELS[model_name]

    def work(member):
        torch.manual_seed(1)
        model, plan, _ = build()
        result = train(
            model, F.cross_entropy, data(3), plan=plan, algorithm=algorithm, optimizer=METHODS[method].optimizer,
            num_rounds=1, runtime=member,
        )  # fmt: skip
        shards, store = result.store.shards(), result.store
        found = rank_memory(plan, store.sizes, store.assignment, member.rank, result.step_cost)
        resting = sum(t.nbytes for name, t in shards.items() if name.startswith(RESTING))
        assert found.resting == resting
        assert found.entering == found.previous == sum(t.nbytes for t in shards.values()) - resting
        assert found.largest == max(t.nbytes for t in store.sizes.values())
        assert found.peak >= found.step.memory + found.previous + resting

    together(3, work)


def test_a_process_of_more_workers_needs_less():
    model, plan, _ = mlp(hidden=(256, 256))
    batch = (torch.randn(16, 9), torch.randint(0, 4, (16,)))
    step = step_cost(model, F.cross_entropy, batch, lambda net: torch.optim.SGD(net.parameters(), 0.1))
    sizes = named_tensors(model)
    few, many = (rank_memory(plan, sizes, Disjoint(n).assign(plan.axes, 0), 0, step, buffer_bytes=1000) for n in (2, 8))
    assert many.previous < few.previous / 3
    assert many.resting < few.resting / 3
    assert (few.buffers, few.largest) == (many.buffers, many.largest) == (1000, 256 * 256 * 4)
