"""Private steps: gradients against those of autograd and Opacus, what one sample changes, noise, and sampling."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from skerry import Private, Shards
from skerry.data.sample_order import PoissonOrder
from skerry.privacy import PrivateRun, gradient
from skerry.privacy.gradient import PrivateGradient, clipped_sum
from skerry.privacy.noise import noise_of, secret_noise


class Tied(nn.Module):
    """A linear module whose weight is used twice, and one that sees several rows of a sample."""

    def __init__(self):
        super().__init__()
        self.table, self.out, self.rows = nn.Embedding(6, 5), nn.Linear(5, 6, bias=False), nn.Linear(5, 5)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(self.rows(self.table(tokens)).tanh()).mean(1)


class Autoencoder(nn.Module):
    """A linear module whose weight is read once more, without a second module."""

    def __init__(self):
        super().__init__()
        self.enc, self.out = nn.Linear(7, 9), nn.Linear(7, 4)

    def forward(self, x):
        return self.out(F.linear(F.relu(self.enc(x)), self.enc.weight.T))


def hooked():
    """A net that changes the output of a linear module."""
    net = mlp()
    net[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    return net


def mlp():
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.Tanh(), nn.Linear(5, 4))


def conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 4))


def normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(7, 9)), nn.ReLU(), nn.Linear(9, 4))


NETS = {
    "normed": (normed, lambda num: torch.randn(num, 7)),
    "autoencoder": (Autoencoder, lambda num: torch.randn(num, 7)),
    "hooked": (hooked, lambda num: torch.randn(num, 7)),
    "mlp": (mlp, lambda num: torch.randn(num, 7)),
    "conv": (conv, lambda num: torch.randn(num, 1, 7, 7)),
    "tied": (Tied, lambda num: torch.randint(0, 6, (num, 3))),
}
EACH = pytest.mark.parametrize("name", NETS)


def mixing_loss(output, labels):
    """A loss in which samples of a batch see each other."""
    return F.cross_entropy(10 * (output - output.mean(0)) * len(labels) + output, labels)


def batch(name, num=12):
    return NETS[name][1](num), torch.arange(num) % 4


@EACH
def test_without_a_bound_it_is_the_gradient_of_the_sum(name):
    net, (x, y) = NETS[name][0](), batch(name)
    F.cross_entropy(net(x), y, reduction="sum").backward()
    found = clipped_sum(net, F.cross_entropy, (x, y), 1e6)
    assert found.keys() == {n for n, _ in net.named_parameters()}
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad)


@EACH
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, mixing_loss])
def test_one_sample_changes_the_sum_by_at_most_the_bound(name, loss_fn):
    net, (x, y) = NETS[name][0](), batch(name)
    for bound in (0.02, 0.5):
        whole = clipped_sum(net, loss_fn, (x, y), bound)
        for left_out in range(0, len(y), 5):
            rest = torch.arange(len(y)) != left_out
            part = clipped_sum(net, loss_fn, (x[rest], y[rest]), bound)
            change = torch.cat([(whole[n] - part[n]).flatten() for n in whole]).norm()
            assert 0 < change <= bound * 1.001


@EACH
def test_outer_products_give_what_gradients_of_samples_give(name):
    net, some = NETS[name][0](), batch(name)
    found = clipped_sum(net, F.cross_entropy, some, 0.5)
    with mock.patch.object(gradient, "_called_on_rows", return_value={}):
        slow = clipped_sum(net, F.cross_entropy, some, 0.5)
    for key in slow:
        torch.testing.assert_close(found[key], slow[key])
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.filterwarnings("ignore")  # Opacus' own
def test_opacus_gives_the_same_sum():
    pytest.importorskip("opacus")
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    net, (x, y) = mlp(), batch("mlp")
    found = clipped_sum(net, F.cross_entropy, (x, y), 0.3)
    hooked = GradSampleModule(net)
    optimizer = DPOptimizer(
        torch.optim.SGD(net.parameters(), 1.0), noise_multiplier=0.0, max_grad_norm=0.3, expected_batch_size=len(y)
    )
    F.cross_entropy(hooked(x), y).backward()
    optimizer.pre_step()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(found[key] / len(y), parameter.grad, rtol=1e-4, atol=1e-6)


@EACH
def test_a_sample_without_a_finite_gradient_counts_as_zero(name):
    net, (x, y) = NETS[name][0](), batch(name)
    if x.is_floating_point():
        x[3] = float("nan")
    else:
        y[3] = -100  # no label: its mean is that of nothing
    rest = torch.arange(len(y)) != 3
    found, expected = (clipped_sum(net, F.cross_entropy, some, 0.5) for some in ((x, y), (x[rest], y[rest])))
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])


@pytest.mark.parametrize(("name", "fast"), [("mlp", {"0", "2", "4"}), ("autoencoder", {"out"}), ("hooked", {"2", "4"})])
def test_outer_products_are_taken_where_nothing_else_reads_the_weight(name, fast):
    assert gradient._called_on_rows(NETS[name][0](), F.cross_entropy, batch(name)).keys() == fast


def test_dropout_is_a_sample_s_own_and_repeatable():
    net, (x, y) = nn.Sequential(nn.Dropout(), mlp()), batch("mlp")
    x = x[:1].expand(12, -1)
    torch.manual_seed(1)
    first = clipped_sum(net, F.cross_entropy, (x, y * 0), 1e6)
    torch.manual_seed(1)
    again = clipped_sum(net, F.cross_entropy, (x, y * 0), 1e6)
    one = clipped_sum(net, F.cross_entropy, (x[:1], y[:1] * 0), 1e6)
    assert torch.equal(first["1.0.weight"], again["1.0.weight"])
    assert not torch.allclose(first["1.0.weight"], 12 * one["1.0.weight"])


@pytest.mark.parametrize("noise", [noise_of(3, "noise"), secret_noise])
def test_noise_is_normal_of_the_declared_size(noise):
    net = nn.Linear(200, 100)
    steps = PrivateGradient(net, max_grad_norm=0.5, noise_multiplier=3.0, batch_size=10, noise=noise)
    steps.set_(F.cross_entropy, [])  # an empty batch: noise alone
    values = net.weight.grad.flatten() / (3.0 * 0.5 / 10)
    assert abs(float(values.mean())) < 0.03
    for limit, share in ((-1.0, 0.1587), (0.0, 0.5), (0.5, 0.6915), (2.0, 0.9772)):
        assert float((values < limit).double().mean()) == pytest.approx(share, abs=0.015)
    before = net.weight.grad.clone()
    steps.set_(F.cross_entropy, [(torch.randn(0, 200), torch.empty(0, dtype=torch.int64))])
    assert float(torch.isclose(net.weight.grad, before).double().mean()) < 0.01


def test_parts_of_a_batch_get_noise_once():
    net, (x, y) = mlp(), batch("mlp")
    halves = [(x[:7], y[:7]), (x[7:], y[7:])]
    found = []
    for parts in ([(x, y)], halves):
        steps = PrivateGradient(net, max_grad_norm=0.5, noise_multiplier=1.0, batch_size=16, noise=noise_of(0))
        steps.set_(F.cross_entropy, parts)
        found.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("seed", [0, None])
def test_each_sample_is_drawn_by_itself_with_the_declared_probability(seed):
    order = PoissonOrder(50, batch_size=10, seed=seed, worker=1)
    drawn = torch.stack([torch.bincount(order.batch(step), minlength=50) for step in range(2000)]).double()
    assert order.sample_rate == 0.2
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(drawn.mean(0), torch.tensor(0.2).double(), atol=0.04)
    assert float(drawn.sum(1).var()) == pytest.approx(50 * 0.2 * 0.8, rel=0.15)  # of independent draws
    assert torch.equal(order.batch(7), order.batch(7)) == (seed is not None)
    assert any(not len(PoissonOrder(3, batch_size=1, seed=seed, worker=0).batch(step)) for step in range(20))


def test_each_sample_is_drawn_with_secret_bits_of_its_own():
    data = Shards(torch.randn(6, 2), torch.arange(6), [torch.arange(6)], batch_size=3, seed=0)
    drawn = []
    for last in (b"\0", b"\xff"):
        with mock.patch("os.urandom", lambda num, last=last: bytes(num - 8) + 8 * last):
            ((_, y),) = PrivateRun.of(Private(noise_multiplier=1.0), data).data.batches(0, 0, 1)
        drawn.append(y.tolist())
    assert drawn == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]


def test_data_that_cannot_be_drawn_so_are_refused():
    x, y = torch.randn(6, 2), torch.zeros(6, dtype=torch.int64)
    for parts in ([torch.tensor([0, 1, 2]), torch.tensor([2, 3])], [torch.tensor([0, 0])]):
        with pytest.raises(ValueError, match=r"parts: 1 samples belong to several workers"):
            Shards(x, y, parts, batch_size=1, seed=0).poisson(0)
    with pytest.raises(ValueError, match=r"batch_size=4: expected at most the 3 samples of worker 0"):
        PoissonOrder(3, batch_size=4, seed=0, worker=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected one of the two"),
        ({"noise_multiplier": 1.0, "target_epsilon": 2.0}, "expected one of the two"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0, expected a number from 0 to below inf"),
        ({"target_epsilon": 2.0, "delta": 1.0}, "delta=1.0"),
        ({"target_epsilon": "2"}, "target_epsilon='2'"),
        ({"target_epsilon": 2.0, "max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"target_epsilon": 2.0, "seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Private(**settings)
