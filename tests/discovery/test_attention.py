"""Attention as others write it, each style as small as it can be.

Checked against the heads that a human expects, and narrow == masked full model in both modes.
"""

import random
from functools import lru_cache

import pytest
import torch
from equivalence import assert_narrow_equals_masked, dealt_to, doubled
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import discover, verify
from skerry.subnet import extract
from skerry.subnet.extract import plan_of_subnet

B, T, H, D = 2, 5, 6, 4
C = H * D
X = torch.randn(B, T, C)


class Style(nn.Module):
    """A pre-norm attention block; ``make`` creates its own tensors and ``attend`` is what it does."""

    num_heads, head_dim, width = H, D, C

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.width = H, D, C
        self.norm, self.out, self.last = nn.LayerNorm(C), nn.Linear(C, C), nn.Linear(C, 5)
        self.make()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attend(self.norm(x)).reshape(x.shape[0], x.shape[1], -1))
        return self.last(F.layer_norm(x, (C,)))

    def make(self) -> None:
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def attend(self, x: Tensor) -> Tensor:
        return self.softmax(*(self.heads(layer(x)) for layer in (self.q, self.k, self.v)))

    def softmax(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        return (self.biased(scores).softmax(-1) @ v).transpose(1, 2)

    def biased(self, scores: Tensor) -> Tensor:
        return scores


class FusedByReshape(Style):
    """As in timm."""

    def make(self) -> None:
        self.qkv = nn.Linear(C, 3 * C)

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.softmax(*qkv.unbind(0))


class FusedByChunk(FusedByReshape):
    def attend(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        return self.softmax(*(t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in parts))


class FusedByHead(FusedByReshape):
    """Queries, keys and values of a head side by side, and a bias for some, as in DeBERTa."""

    def make(self) -> None:
        super().make()
        self.bias = nn.Parameter(torch.randn(C))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], self.num_heads, -1).permute(0, 2, 1, 3).chunk(3, -1)
        return self.softmax(q + self.heads(self.bias[None, None]), k, v)


class PositionsByContent(FusedByHead):
    """Keys also meet embeddings of positions, whose projection is scaled in place; their batch is of one."""

    def make(self) -> None:
        super().make()
        self.table, self.pos = nn.Parameter(torch.randn(T, C)), nn.Linear(C, C)

    def softmax(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pos = self.heads(self.pos(self.table[None]))
        pos /= 2.0
        return ((q @ k.transpose(-1, -2) + k @ pos.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)


class FilledInParts(Style):
    """Latents that all heads share, and parts of keys that do not turn, written into an empty tensor, as in MLA."""

    def make(self) -> None:
        self.q = nn.Linear(C, H * (D + 2))
        self.down, self.up = nn.Linear(C, 8 + 2), nn.Linear(8, H * 2 * D)

    def attend(self, x: Tensor) -> Tensor:
        q = self.q(x).view(B, T, -1, D + 2).transpose(1, 2)
        latent, turned = self.down(x).split([8, 2], -1)
        k, v = self.up(F.layer_norm(latent, (8,))).view(B, T, -1, 2 * D).transpose(1, 2).split([D, D], -1)
        keys = k.new_empty(*k.shape[:3], D + 2)
        keys[..., :D] = k
        keys[..., D:] = turned[:, None].expand(*k.shape[:3], -1)
        return self.softmax(q, keys, v)


@lru_cache
def _distances() -> Tensor:
    return (torch.arange(T)[:, None] - torch.arange(T)[None]) + T - 1


class TableOfDistances(Style):
    """A bias a distance and head, looked up by numbers that are made once and kept outside of the model, as in BEiT."""

    def make(self) -> None:
        super().make()
        self.table = nn.Parameter(torch.randn(2 * T - 1, H))

    def biased(self, scores: Tensor) -> Tensor:
        return scores + self.table[_distances().view(-1)].view(T, T, -1).permute(2, 0, 1)


class KeysAfterHeads(Style):
    """One key and one value for all heads, after the queries' heads, as in Falcon."""

    def make(self) -> None:
        self.qkv = nn.Linear(C, C + 2 * D)

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(*x.shape[:2], self.num_heads + 2, self.head_dim)
        q, k, v = (t.transpose(1, 2) for t in (qkv[:, :, :-2], qkv[:, :, [-2]], qkv[:, :, -1:]))
        return self.softmax(q, k, v)


class FusedUnevenly(KeysAfterHeads):
    """The same by split, as in GPT-BigCode."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([self.width, self.head_dim, self.head_dim], -1)
        return self.softmax(self.heads(q), k[:, None], v[:, None])


class GatedHeads(Style):
    def make(self) -> None:
        super().make()
        self.gate = nn.Linear(C, H)

    def attend(self, x: Tensor) -> Tensor:
        return super().attend(x) * torch.sigmoid(self.gate(x))[..., None]


class DrawnByPython(Style):
    """Looks at some tokens that Python draws, as samplers of edges do."""

    def biased(self, scores: Tensor) -> Tensor:
        return scores + torch.tensor([random.random() for _ in range(T)], dtype=scores.dtype)


class Slopes(nn.Module):
    """The model makes slopes for all heads, of all samples, and gives them to its layers by name or by position."""

    class Layer(Style):
        def forward(self, x: Tensor, slopes: Tensor) -> Tensor:
            self.slopes = slopes
            x = x + self.out(self.attend(self.norm(x)).reshape(*x.shape[:2], -1))
            return F.layer_norm(x, (C,))

        def biased(self, scores: Tensor) -> Tensor:
            return scores + self.slopes.view(scores.shape[0], self.num_heads, 1, -1)

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = H
        self.layers, self.last = nn.ModuleList([self.Layer(), self.Layer()]), nn.Linear(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        slopes = 2 ** -torch.arange(1, 1 + self.num_heads, dtype=x.dtype)
        slopes = (slopes[:, None, None] * torch.arange(x.shape[1], dtype=x.dtype)).repeat(len(x), 1, 1)
        return self.last(self.layers[1](self.layers[0](x, slopes), slopes=slopes))


STYLES = [
    Style, FusedByReshape, FusedByChunk, FusedByHead, PositionsByContent, FilledInParts, TableOfDistances,
    KeysAfterHeads, FusedUnevenly, GatedHeads, DrawnByPython, Slopes,
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_heads_are_dealt_out_and_compute_the_same(style):
    torch.manual_seed(0)
    _distances.cache_clear()
    model, x = doubled(style(), X)
    plan = discover(model, x)
    assert ("heads", H) in [(axis.kind, axis.num_units) for axis in plan.axes], str(plan)
    verify(model, plan, x)
    for workers in (2, 5):
        for training in (False, True):
            assert_narrow_equals_masked(model, plan, x, dealt_to(plan, workers)[0], training=training)


def test_slopes_are_cut_where_another_axis_comes_first_and_by_position_or_by_name():
    model, x = doubled(nn.Sequential(nn.Linear(C, 10), nn.ReLU(), nn.Linear(10, C), Slopes()), X)
    plan = discover(model, x)
    assert [(axis.kind, axis.num_units) for axis in plan.axes] == [("neurons", 10), ("heads", H), ("heads", H)]
    units = dealt_to(plan, 2)[0]
    assert_narrow_equals_masked(model, plan, x, units)
    slopes, narrow = torch.ones(len(x) * H, 1, x.shape[1], dtype=x.dtype), extract(model, plan, units)[3].layers[0]
    torch.testing.assert_close(narrow(x, slopes), narrow(x, slopes=slopes))


def test_a_subnet_of_a_subnet_cuts_arguments_twice():
    model, x = doubled(Slopes(), X)
    plan = discover(model, x)
    assert "argument slopes dim 0 each 1" in str(plan)
    first, second = (axis.start + torch.tensor([0, 2, 3]) for axis in plan.axes)
    held = torch.cat([first, second])
    middle, its_plan = extract(model, plan, held), plan_of_subnet(plan, held)
    twice = extract(middle, its_plan, torch.tensor([1, 2, 4]))
    once = extract(model, plan, held[torch.tensor([1, 2, 4])])
    torch.testing.assert_close(twice.eval()(x), once.eval()(x))


def test_a_layer_of_one_head_does_not_cost_the_heads_of_others():
    class ByWidth(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.dim_head = 4
            self.qkv, self.out = nn.Linear(C, 12 * heads), nn.Linear(4 * heads, C)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(F.layer_norm(x, (C,))).view(*x.shape[:2], -1, 12).transpose(1, 2).chunk(3, -1)
            return x + self.out(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    model = nn.Sequential(ByWidth(1), ByWidth(6), ByWidth(3), nn.LayerNorm(C), nn.Linear(C, 5))
    assert [(axis.kind, axis.num_units) for axis in discover(model, X).axes] == [("heads", 6), ("heads", 3)]
