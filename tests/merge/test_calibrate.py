"""Calibration: the scale against the mean over subnets, batch-norm statistics against one big batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import blobs, cnn, mlp

from skerry import cosine, discover, ist, train
from skerry.merge import calibrate
from skerry.merge.calibrate import check_batch_norm, estimate_batch_norm_
from skerry.partitions import Disjoint, Everything, Share
from skerry.subnet import extract
from skerry.training import evaluate


def test_the_scaled_full_output_is_the_mean_over_subnets_of_a_one_layer_net():
    model, plan, x = mlp(norm=False, hidden=(12,))
    with torch.no_grad():
        model.out.bias.zero_()
    for partition in (Disjoint(3), Disjoint(3, core=0.5), Everything(3), Disjoint(3, capacities=(1, 2, 3))):
        assignment, share = partition.assign(plan.axes, 0), Share.of(partition, plan.axes, 0)
        mean = torch.stack([extract(model, plan, assignment.units(w))(x) for w in range(3)]).mean(0)
        torch.testing.assert_close(calibrate(model, plan, share)(x), mean)


def test_only_consumers_are_scaled_and_the_model_is_left_alone():
    model, plan, _ = cnn()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    scaled = calibrate(model, plan, Share.of(Disjoint(2), plan.axes, 0)).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        # Of 7 and 11 units one worker has 4 and 6: a unit is more often beside the many than beside the few.
        factor = {"convs.1.weight": 1 / 2, "hidden.weight": (4 * 6 + 3 * 5) / (7 * 11), "out.weight": 1 / 2}
        torch.testing.assert_close(scaled[name], tensor * factor.get(name, 1))


def test_the_norm_of_a_weight_norm_is_scaled_so_that_the_full_model_is_the_mean_over_subnets():
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), norm(nn.Linear(12, 5, bias=False)))
    v = model[2].parametrizations.weight.original1
    with torch.no_grad():
        v.copy_(v.sign())  # all columns count the same, so the mean is exact
    x = torch.randn(7, 6)
    plan = discover(model, x)
    for partition in (Disjoint(3), Everything(3)):
        assignment, share = partition.assign(plan.axes, 0), Share.of(partition, plan.axes, 0)
        mean = torch.stack([extract(model, plan, assignment.units(w))(x) for w in range(3)]).mean(0)
        torch.testing.assert_close(calibrate(model, plan, share)(x), mean)


def test_the_norm_of_a_weight_norm_between_two_dealt_dims_is_scaled_row_by_row():
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), norm(nn.Linear(12, 9)), nn.ReLU(), nn.Linear(9, 5))
    plan = discover(model, torch.randn(7, 6))
    scaled = calibrate(model, plan, Share.of(Disjoint(3), plan.axes, 0))
    torch.testing.assert_close(scaled[2].weight, model[2].weight * 3**-0.5)
    assert torch.equal(model[2].bias, scaled[2].bias)


def test_batch_norm_statistics_are_those_of_the_layer_inputs():
    model, _, x = cnn()
    estimate_batch_norm_(model, lambda m: m(x))
    model.eval()
    first = model.convs[0](x)
    torch.testing.assert_close(model.norms[0].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(model.norms[0].running_var, first.transpose(0, 1).flatten(1).var(1))
    second = model.convs[1](F.max_pool2d(F.relu(model.norms[0](first)), 2))  # behind the statistics just set
    torch.testing.assert_close(model.norms[1].running_var, second.transpose(0, 1).flatten(1).var(1))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_parts_that_are_totalled_give_the_statistics_of_the_whole():
    whole, _, x = cnn()
    estimate_batch_norm_(whole, lambda m: m(x))
    import copy
    import threading

    parts, barrier, sums = [copy.deepcopy(whole) for _ in range(2)], threading.Barrier(2), [None, None]

    def process(k):
        def total(tensor):
            sums[k] = tensor
            barrier.wait()
            result = sums[0] + sums[1]
            barrier.wait()
            return result

        estimate_batch_norm_(parts[k], lambda m: m(x[k * 5 : 5 if k == 0 else None]), total)

    threads = [threading.Thread(target=process, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in parts:
        for a, b in zip(part.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def test_statistics_of_the_test_batch_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="track_running_stats"):
        check_batch_norm(model)


def test_where_nothing_is_dealt_out_running_statistics_are_kept():
    model, plan, x = mlp()
    kept = calibrate(model, plan, Share.of(Everything(2), plan.axes, 0), lambda m: m(x))
    assert torch.equal(kept.norms[0].running_mean, model.norms[0].running_mean)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model, plan, _ = mlp(hidden=(32, 32))
    test_x, test_y = next(iter(blobs(1, samples=2000, batch=2000, seed=7).batches(0, 0, 1)))
    result = train(
        model,
        F.cross_entropy,
        blobs(4, samples=800),
        plan=plan,
        algorithm=ist(4, local_steps=10),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        num_rounds=20,
        schedule=cosine,
        test=(test_x, test_y),
    )
    return model, result, test_x, test_y


def test_accuracy_does_not_depend_on_order_or_batching_of_the_test_set(trained):
    _, result, x, y = trained
    assert result.score.accuracy > 0.8
    by_class = y.argsort()
    for batch_size in (7, 100, 2000):
        for order in (torch.arange(len(y)), by_class):
            score = evaluate(result.model, F.cross_entropy, (x[order], y[order]), batch_size=batch_size)
            assert score.accuracy == result.score.accuracy
            assert score.loss == pytest.approx(result.score.loss, rel=1e-4)


def test_the_loss_is_sane_and_would_not_be_without_the_scale(trained):
    model, result, x, y = trained
    assert result.score.loss < 0.8
    plan = result.plan
    unscaled = calibrate(
        model, plan, Share.independent(torch.ones(plan.num_units, dtype=torch.float64)), lambda m: m(x[:500])
    )
    wrong = evaluate(unscaled, F.cross_entropy, (x, y))
    assert wrong.loss > 1.5 * result.score.loss
