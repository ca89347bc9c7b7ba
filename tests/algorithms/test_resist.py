"""ResIST against what its paper says, written as a loop; its warm-up against local SGD."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import blobs, blocks

from skerry import train
from skerry.algorithms import local_sgd, resist
from skerry.model.tensors import named_tensors
from skerry.partitions import Covering

WORKERS, ROUNDS, STEPS = 3, 4, 3


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)


def only_blocks():
    """Six residual blocks, of which nothing but whole blocks is dealt out."""
    torch.manual_seed(1)
    model, plan, _ = blocks()
    return model, plan.only("blocks*")


def go(algorithm, rounds=ROUNDS):
    model, plan = only_blocks()
    result = train(
        model, F.cross_entropy, blobs(WORKERS), plan=plan, algorithm=algorithm, optimizer=sgd, num_rounds=rounds
    )
    return model, result


def test_blocks_are_skipped_and_averaged_over_those_who_had_them():
    least = 4  # of 6, so that most blocks have two holders
    meant, plan = only_blocks()
    dealing = Covering(WORKERS, least, seed=2)
    for round in range(ROUNDS):
        held = dealing.assign(plan.axes, round).held
        trained = []
        for worker in range(WORKERS):
            replica = copy.deepcopy(meant).train()
            for k in range(6):
                if not held[worker, k]:
                    replica[1][k] = nn.Identity()
            optimizer = sgd(replica)
            for x, y in blobs(WORKERS).batches(worker, round * STEPS, STEPS):
                optimizer.zero_grad()
                F.cross_entropy(replica(x), y).backward()
                optimizer.step()
            trained.append(named_tensors(replica))
        for name, tensor in named_tensors(meant).items():
            holders = [tensors[name] for tensors in trained if name in tensors]
            assert len(holders) == (held[:, int(name.split(".")[1])].sum() if name.startswith("1.") else WORKERS)
            if tensor.is_floating_point():
                tensor.copy_(torch.stack(holders).double().mean(0))
    ours, _ = go(resist(WORKERS, local_steps=STEPS, seed=2, min_units=least))
    for name, tensor in named_tensors(ours).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, named_tensors(meant)[name], msg=lambda told, name=name: f"{name}: {told}"
            )


@pytest.mark.parametrize(("least", "share"), [(1, 1 / 3), (4, 2 / 3), (5, 5 / 6)])
def test_branches_are_scaled_by_the_share_at_inference(least, share):
    model, result = go(resist(WORKERS, local_steps=STEPS, min_units=least), rounds=1)
    for k in range(6):
        torch.testing.assert_close(result.model[1][k].down.weight, model[1][k].down.weight * share)
        assert torch.equal(result.model[1][k].up.weight, model[1][k].up.weight)


@pytest.mark.slow
def test_warm_up_is_local_sgd_and_costs_what_that_costs():
    warm, result = go(resist(WORKERS, local_steps=STEPS, warmup_rounds=ROUNDS))
    plain, expected = go(local_sgd(WORKERS, local_steps=STEPS))
    for name, tensor in named_tensors(plain).items():
        assert torch.equal(named_tensors(warm)[name], tensor), name
    assert torch.equal(result.model[1][0].down.weight, warm[1][0].down.weight)  # nothing is scaled
    assert result.state.totals["flop"] == expected.state.totals["flop"]
    half, ended = go(resist(WORKERS, local_steps=STEPS, warmup_rounds=ROUNDS // 2))
    assert ended.state.totals["flop"] < expected.state.totals["flop"]
    assert not torch.equal(named_tensors(half)["1.0.up.weight"], named_tensors(plain)["1.0.up.weight"])
    assert set(ended.state.trained.tolist()) == {WORKERS * 2 + 2}  # all in two rounds, one in each of two
