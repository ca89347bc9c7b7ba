"""Grouped norms, checked against the norms they replace: one group is the norm itself, a group is a smaller norm."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.discovery import group_norms_
from skerry.model.grouped_norm import GroupedNorm


class Own(nn.Module):
    """As in nanoGPT: no attribute says what it is."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Gemma(nn.Module):
    """One plus the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.zeros(width)), 3e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (wide * (1 + self.weight)).to(x.dtype)


class Doubled(Own):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


NORMS = {
    "layer": lambda width: nn.LayerNorm(width, eps=1e-3),
    "without bias": lambda width: nn.LayerNorm(width, bias=False),
    "without an affine map": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "rms": lambda width: nn.RMSNorm(width),
    "nanogpt": Own,
    "gemma": Gemma,
}


@pytest.fixture(params=NORMS)
def make(request):
    return NORMS[request.param]


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["", "eps counts"])
def test_each_group_is_normed_by_the_norm_of_its_width(make, scale):
    torch.manual_seed(0)
    norm = make(12)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = scale * (torch.randn(3, 5, 12) + 1)
    for num in (1, 3):
        model = nn.Sequential(nn.Identity(), copy.deepcopy(norm))
        before = list(model.parameters())
        assert group_norms_(model, num) == ["1"]
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
        for group in range(num):
            small, part = make(12 // num), slice(group * 12 // num, (group + 1) * 12 // num)
            small.load_state_dict({name: tensor[part] for name, tensor in norm.state_dict().items()})
            torch.testing.assert_close(model(x)[..., part], small(x[..., part]), rtol=1e-4, atol=1e-5)


def test_norms_are_known_on_meta_and_keep_their_dtype(make):
    with torch.device("meta"):
        model = nn.Sequential(make(12), make(12))
    assert group_norms_(model, 4) == ["0", "1"]
    real = nn.Sequential(make(12).to(torch.bfloat16))
    group_norms_(real, 4)
    assert real(torch.randn(2, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_stream_is_what_most_norms_are_over():
    model = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(4), nn.LayerNorm(8), nn.BatchNorm1d(8), nn.PReLU(8))
    assert group_norms_(model, 2) == ["0", "2"]
    assert not isinstance(model[1], GroupedNorm)


def test_a_group_norm_over_channels_is_no_layer_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ValueError, match="no layer norm or RMS norm"):
        group_norms_(model, 1)
    assert type(model[1]) is nn.GroupNorm


def test_a_norm_with_two_names_stays_one():
    norm = nn.LayerNorm(8)
    model = nn.Sequential(norm, nn.Linear(8, 8), norm)
    group_norms_(model, 2)
    assert isinstance(model[0], GroupedNorm)
    assert model[0] is model[2]


def test_the_same_number_of_groups_again_changes_nothing():
    model = nn.Sequential(nn.LayerNorm(8))
    group_norms_(model, 2)
    kept = model[0]
    assert group_norms_(model, 2) == ["0"]
    assert model[0].weight is kept.weight
    assert model[0].group_width == 4


@pytest.mark.parametrize(
    ("model", "num", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4), Doubled(4)), 2, "Sequential has no layer norm or RMS norm to group"),
        (nn.Sequential(nn.LayerNorm(10)), 4, "the norm 0 is over 10 features, expected a number that divides 10"),
        (nn.Sequential(nn.LayerNorm(10)), 0, "grouped_norms=0: expected"),
        (nn.Sequential(GroupedNorm(nn.Parameter(torch.ones(8)), None, 4, 0.0)), 4, "0 has 2 groups already; give 2"),
    ],
)
def test_what_cannot_be_grouped_is_said_in_one_line(model, num, said):
    with pytest.raises(ValueError, match=said) as caught:
        group_norms_(model, num)
    assert "\n" not in str(caught.value)


def test_torchs_fused_encoder_layer_does_not_read_the_norms_tensors():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    group_norms_(encoder, 2)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        fused = encoder(x)
    torch.testing.assert_close(fused, encoder(x))
