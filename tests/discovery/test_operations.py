"""Rules of less common operations: the axes that a human expects, and narrow == masked full model in both modes."""

import re

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, dealt_to, doubled
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import discover, verify
from skerry.discovery.constraints import Constraints
from skerry.discovery.index_labels import Field, Labels
from skerry.discovery.operations.operation import Operation
from skerry.discovery.operations.rules import RULES
from skerry.discovery.unit_solver import components

weight_norm = nn.utils.parametrizations.weight_norm


class Between(nn.Module):
    """Two dense layers with something between them; ``between`` may read what is kept beside it."""

    def __init__(self, between, width: int = 12, **kept: Tensor) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(7, width), nn.Linear(12, 5), between
        for name, tensor in kept.items():
            if isinstance(tensor, nn.Parameter):
                setattr(self, name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x).relu()))


def _spectral(self, h):
    """Mixes over tokens by a filter per channel, as in global filter nets."""
    f = torch.fft.rfft(h, dim=1) * torch.view_as_complex(self.filter)
    return torch.fft.irfft(f, n=h.shape[1], dim=1)


def _image(self, h):
    """Tokens as an image of 2 x 4."""
    return h.transpose(1, 2).unflatten(-1, (2, 4))


def _unfolded(self, h):
    return F.unfold(_image(self, h), 3, padding=1).unflatten(1, (-1, 9)).sum(2).transpose(1, 2)


def _folded(self, h):
    return F.fold(h.transpose(1, 2), (4, 8), 2, stride=2).flatten(2).transpose(1, 2)


def _sampled(self, h):
    grid = torch.linspace(-1, 1, 16, dtype=h.dtype).view(1, 2, 4, 2).expand(len(h), -1, -1, -1)
    return F.grid_sample(_image(self, h), grid, align_corners=False).flatten(2).transpose(1, 2)


def _masked_weight(self, h):
    return F.linear(h, self.mask * self.weight)


def _gates(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(7, 18), nn.ReLU(), *layers, nn.Linear(12, 5))


X = torch.randn(3, 8, 7)
KINDS = {  # the model, and the axes to find, of tokens of width 7
    "weight norm, twice": (lambda: _gates(weight_norm(nn.Linear(18, 14)), nn.ReLU(), weight_norm(nn.Linear(14, 12))),
                           [18, 14, 12]),
    "weight norm of columns": (lambda: _gates(weight_norm(nn.Linear(18, 12), dim=1)), []),
    "fft over tokens": (lambda: Between(_spectral, filter=nn.Parameter(torch.randn(5, 12, 2))), [12]),
    "fft over the width": (lambda: Between(lambda self, h: torch.fft.fft2(h).real), []),
    "unfold": (lambda: Between(_unfolded), [12]),
    "fold": (lambda: Between(_folded, width=48), [12]),
    "windows": (lambda: Between(lambda self, h: h.unfold(1, 3, 2).amax(-1)), [12]),
    "grid_sample": (lambda: Between(_sampled), [12]),
    "a whole-number buffer": (lambda: Between(lambda self, h: h * self.signs, signs=torch.arange(12) % 3), [12]),
    "a mask": (lambda: Between(lambda self, h: h * self.mask, mask=torch.arange(12) % 3 > 0), [12]),
    "a masked weight": (lambda: Between(_masked_weight, mask=(torch.rand(12, 14) > 0.3).float(), width=14,
                                        weight=nn.Parameter(torch.randn(12, 14))), [14, 12]),
}  # fmt: skip


@pytest.mark.parametrize(("build", "axes"), KINDS.values(), ids=KINDS)
def test_it_is_dealt_out_as_a_human_would_and_computes_the_same(build, axes):
    torch.manual_seed(0)
    model, x = doubled(build(), X)
    plan = discover(model, x)
    assert sorted(axis.num_units for axis in plan.axes) == sorted(axes), str(plan)
    verify(model, plan, x)
    for workers in (2, 5):
        for training in (False, True):
            assert_narrow_equals_masked(model, plan, x, dealt_to(plan, workers)[0], training=training)
    if not any(buffer.dtype == torch.bool for buffer in model.buffers()):
        assert_write_back_is_exact(model, plan, dealt_to(plan, 2)[0])


def test_weight_norm_of_convolutions_is_dealt_out_by_channels_and_not_where_it_norms_over_outputs():
    convs = weight_norm(nn.Conv1d(10, 18, 3)), nn.ReLU(), weight_norm(nn.Conv1d(18, 14, 3, dilation=2))
    model, x = doubled(nn.Sequential(*convs, nn.ReLU(), nn.Conv1d(14, 5, 1)), torch.randn(3, 10, 9))
    plan = discover(model, x)
    assert [axis.num_units for axis in plan.axes] == [18, 14]
    assert_narrow_equals_masked(model, plan, x, dealt_to(plan, 3)[0])
    up = nn.Sequential(nn.Conv1d(10, 18, 1), nn.ReLU(), weight_norm(nn.ConvTranspose1d(18, 14, 3)), nn.Conv1d(14, 5, 1))
    assert not discover(up, torch.randn(3, 10, 9)).axes  # the norm of an input channel runs over the output channels


class Complex(nn.Module):
    """A matrix of complex numbers, as in Fourier neural operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 12), nn.Linear(14, 5)
        self.weight = nn.Parameter(torch.randn(12, 14, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft(self.first(x).relu(), dim=1)[:, :4]
        return self.last(torch.fft.irfft(torch.einsum("bxi,iox->bxo", f, self.weight), n=8, dim=1))


def test_complex_weights_are_dealt_out_and_compared_in_double_precision():
    model = Complex()
    plan = discover(model, X)
    assert sorted(axis.num_units for axis in plan.axes) == [12, 14]
    verify(model, plan, X, tolerance=1e-12)


def test_a_weight_that_is_computed_is_named_where_it_keeps_units_from_being_dealt_out():
    plan = discover(_gates(weight_norm(nn.Linear(18, 12), dim=1)), X)
    assert not plan.axes
    assert re.search(r"0\.weight dim 0.*summed over, but not by a plain parameter \(aten::addmm\) in 2", str(plan))


@pytest.mark.parametrize(("kind", "num_gates"), [("lstm", 4), ("gru", 3)])
def test_a_fused_cell_joins_the_gates_of_a_unit(kind, num_gates):
    """It runs on GPUs only, so here the rule alone is asked."""
    width, constraints, labels, start = 6, Constraints(op=0), {}, 1
    tensors = [torch.zeros(3, num_gates * width), torch.zeros(3, num_gates * width), torch.zeros(3, width)]
    tensors.append(torch.zeros(num_gates * width))
    for tensor in tensors:
        ids = torch.arange(start, start := start + tensor.shape[-1])
        labels[id(tensor)] = Labels((Field(ids.view([1] * (tensor.dim() - 1) + [-1])),))
    outs = [torch.zeros(3, width), torch.zeros(3, width), torch.zeros(3, num_gates * width)][4 - num_gates :]
    packet = getattr(torch.ops.aten, f"_thnn_fused_{kind}_cell")
    operation = Operation(
        constraints, lambda t: labels[id(t)], packet, tensors, {}, outs, lambda n: None, None, None, None
    )
    found = RULES[f"_thnn_fused_{kind}_cell"](operation)
    a, b = (torch.cat([getattr(edge, side) for edge in constraints.edges]).numpy() for side in "ab")
    of = components(start, a, b)
    for one in labels.values():
        units = of[one.fields[0].ids.flatten().numpy()].reshape(-1, width)
        assert (units == units[:1]).all()
        assert len(set(units[0])) == width
    assert [len(one.fields) for one in found] == [1] * (num_gates - 2) + [0]
    assert {ends for _, _, ends, _ in constraints.even_cuts} == {tuple(range(0, num_gates * width, width))}
