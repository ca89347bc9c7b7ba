"""What is verified is what is trained: the sizes and modes of the run. Frozen weights keep their bits throughout."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import METHODS, adamw, blobs, sgd

import skerry
from skerry import discover
from skerry.trained import Apart


def _train(model, data, algorithm, **given):
    given = {"optimizer": sgd, "num_rounds": 3, **given}
    given["plan"] = given.get("plan") or discover(model, data.sample(0, 8))
    return skerry.train(model, F.cross_entropy, data, algorithm=algorithm, **given)


def _frozen() -> nn.Module:
    """Each dealt axis has one frozen neighbour: a reader, a maker, a norm; the first two layers are trained."""
    layers = [
        nn.Linear(9, 14),
        nn.ReLU(),
        nn.Linear(14, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.Linear(10, 4))
    for k in (4, 5):
        model[k].requires_grad_(False)
    return model


@pytest.mark.filterwarnings("ignore:.*frozen and reads units", "ignore::skerry.training.TheoryWarning")
@pytest.mark.parametrize("method", [name for name in METHODS if name != "resist"])
def test_frozen_weights_keep_their_bits_through_every_method(method):
    torch.manual_seed(0)
    algorithm, model = METHODS[method].algorithm, _frozen()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    plan = discover(model, torch.randn(8, 9))
    if isinstance(algorithm.trains, Apart):
        with pytest.raises(ValueError, match=r"^4\.weight: frozen, and between two axes"):
            _train(model, blobs(3), algorithm, plan=plan)
        plan = plan.without("4")
        if plan.why_dependent(model):
            return
    workers = algorithm.partition.num_workers
    trained = _train(model, blobs(workers), algorithm, plan=plan, optimizer=METHODS[method].optimizer).model
    after = dict(trained.named_parameters())
    for name, value in before.items():
        cut = tuple(slice(0, size) for size in after[name].shape)  # a narrow net has the first units
        assert torch.equal(after[name], value[cut]), name


def test_a_frozen_reader_of_units_that_a_worker_may_lack_is_warned_of():
    model = _frozen()
    with pytest.warns(UserWarning, match=r"^4\.weight is frozen and reads units that are dealt out \(2\)"):
        _train(model, blobs(2), skerry.ist(2, local_steps=2), num_rounds=1)


class Skip(nn.Module):
    """Adds its input if it has the same width, which a subnet may have by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 36)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.layer(x))
        return h + x if h.shape == x.shape else h


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x[:, None])).mean(2, keepdim=True).squeeze())


@pytest.mark.parametrize(
    ("build", "workers", "said"),
    [
        (lambda: nn.Sequential(Skip(), nn.Linear(36, 4)), 4, r"axis '0\.layer' with 9 of 36 units"),
        (Squeezed, 8, r"axis 'conv' with 1 of 8 units"),
    ],
)
def test_the_sizes_of_the_run_are_verified(build, workers, said):
    model, data = build(), blobs(workers)
    with pytest.raises(ValueError, match=said) as error:
        _train(model, data, skerry.ist(workers, local_steps=2))
    assert "\n" not in str(error.value)
    _train(build(), blobs(2), skerry.ist(2, local_steps=2), num_rounds=1)  # another size is right


def test_sizes_are_verified_on_the_meta_device_too():
    model = nn.Sequential(Skip(), nn.Linear(36, 4))
    plan = discover(model, torch.randn(4, 9))
    start = lambda net: skerry.weights.FromInitializer(net, seed=0)  # noqa: E731
    with pytest.raises(ValueError, match=r"axis '0\.layer' with 9 of 12 units"):
        _train(model.to("meta"), blobs(4), skerry.ist(4, local_steps=2), plan=plan, start=start, optimizer=adamw)


def test_a_batch_too_small_for_batch_norm_is_shown_with_what_to_do():
    x, y = torch.randn(66, 9), torch.randint(4, (66,))
    sets = [torch.utils.data.TensorDataset(x[w::2], y[w::2]) for w in range(2)]  # batches of 16, 16, 1
    data = skerry.from_loaders([torch.utils.data.DataLoader(one, batch_size=16) for one in sets])
    model = nn.Sequential(nn.Linear(9, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    with pytest.raises(ValueError, match=r"float32 \(1, 9\).*drop_last=True"):
        _train(model, data, skerry.ist(2, local_steps=3))
