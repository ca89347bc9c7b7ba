"""How many forwards discovery takes: as many for a deep net as for a shallow one, and few whatever fails."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import discover


class Attention(nn.Module):
    """Written for a number of heads, as nearly everybody writes it; keys may have fewer."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.num_heads, self.key_heads = 6, keys
        self.q, self.k, self.v, self.o = (
            nn.Linear(24, 24),
            nn.Linear(24, 4 * keys),
            nn.Linear(24, 4 * keys),
            nn.Linear(24, 24),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.num_heads, 4).transpose(1, 2)
        k, v = (layer(x).view(b, t, self.key_heads, 4).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (z.repeat_interleave(self.num_heads // self.key_heads, 1) for z in (k, v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, 4 * self.num_heads))


class Transformer(nn.Module):
    def __init__(self, depth: int, keys: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(keys) for _ in range(depth))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(24, 44), nn.GELU(), nn.Linear(44, 24)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + attention(F.layer_norm(x, (24,)))
            x = x + mlp(F.layer_norm(x, (24,)))
        return x


class Blocks(nn.Module):
    """Blocks of one hidden layer, with a function between its two layers, one a block."""

    def __init__(self, *between) -> None:
        super().__init__()
        self.up = nn.ModuleList(_Layer(8, 12, f) for f in between)
        self.down = nn.ModuleList(nn.Linear(12, 8) for _ in between)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = F.layer_norm(x + down(up(x)), (8,))
        return x


class _Layer(nn.Linear):
    def __init__(self, rows: int, columns: int, between) -> None:
        super().__init__(rows, columns)
        self.between, self.kept = between, 12

    def forward(self, x: Tensor) -> Tensor:
        return self.between(super().forward(x))


@pytest.fixture
def forwards():
    """Counts forwards of nets, full and narrow."""
    run = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: run.append(0) if isinstance(module, Transformer | Blocks) else None
    )
    yield run
    hook.remove()


@pytest.mark.parametrize("keys", [6, 3])
def test_a_deep_net_takes_as_many_forwards_as_a_shallow_one_without_memory_for_its_weights(keys, forwards):
    taken = []
    for depth in (1, 2, 6):
        with torch.device("meta"):
            model = Transformer(depth, keys)
        plan = discover(model, torch.randn(1, 5, 24))
        assert [(axis.kind, axis.num_units) for axis in plan.axes].count(("heads", keys)) == depth
        taken.append(len(forwards))
        forwards.clear()
    assert taken[1:] == taken[1:2] * 2
    assert max(taken) <= 10


def fine(h: Tensor) -> Tensor:
    return torch.relu(h)


def by_width(h: Tensor) -> Tensor:
    return h / h.shape[-1]


def viewed(h: Tensor) -> Tensor:
    return h.view(-1, 12)


FAILING = {
    "one": [fine] * 20 + [by_width],
    "every second": [fine, by_width] * 12,
    "all in one way": [by_width] * 24,
    "in two ways": [by_width, lambda h: h + h.shape[-1]] * 10,
    "errors": [lambda h: h * torch.ones(12)] * 20,
    "each in its own way": [lambda h, n=n: h * (h.shape[-1] * 0.1) ** n for n in range(1, 25)],
    "each in its own class": [
        type(f"Own{n}", (nn.Module,), {"forward": lambda self, h: h / h.shape[-1]})() for n in range(24)
    ],
}


@pytest.mark.parametrize("between", FAILING.values(), ids=FAILING)
def test_few_forwards_whatever_fails(between, forwards):
    model = Blocks(*between)
    plan = discover(model, torch.randn(4, 8))
    assert len(plan.axes) == between.count(fine)
    assert len(forwards) <= 30
