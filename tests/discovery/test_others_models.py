"""Kinds of forwards that were once dealt out too little, wrongly, or not at all, each as small as it can be.

Checked against the axes that a human expects, and narrow == masked full model in both modes.
"""

from itertools import count

import pytest
import torch
from equivalence import assert_narrow_equals_masked, dealt_to, doubled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerry import discover, verify
from skerry.discovery import narrow_trial
from skerry.plan import load_plan, save_plan
from skerry.subnet import extract
from skerry.subnet.extract import plan_of_subnet


class Gate(nn.Module):
    """A bias in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(10, 36, bias=False), nn.Linear(18, 5)
        self.bias = nn.Parameter(torch.randn(36))

    def forward(self, x: Tensor) -> Tensor:
        (a, b), (c, d) = self.up(x).chunk(2, -1), self.bias.chunk(2)
        return self.down((a + c) * torch.sigmoid(b + d))


class Attention(nn.Module):
    """Attention that finds its heads in one way or another: ``split`` is called with (self, x)."""

    def __init__(self, split, keys: int = 24, merge=lambda self, y, x: y.flatten(2)) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.dim = 6, 4, 24
        self.q, self.k, self.v, self.o = nn.Linear(24, 24), nn.Linear(24, keys), nn.Linear(24, keys), nn.Linear(24, 24)
        self.split, self.merge = split, merge

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 4)).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(self, x)
        scores = q @ k.transpose(-1, -2) / 2
        y = torch.softmax(scores if mask is None else scores + mask, -1) @ v
        return self.o(self.merge(self, y.transpose(1, 2), x))


def _attention(split, **given) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(24), Attention(split, **given), nn.LayerNorm(24), nn.Linear(24, 5))


def _turned(self, x):
    q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
    q, k = (torch.cat([z[..., :4] * 0.5, z[..., 4:]], -1) for z in (q, k))  # the second part is empty
    return q, k, v


def _by_number(self, x):
    b, n, _ = x.shape
    return (layer(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))


def _by_input(self, x):
    b, n, c = x.shape
    return (layer(x).reshape(b, n, 6, c // 6).permute(0, 2, 1, 3) for layer in (self.q, self.k, self.v))


def _to_dim(self, y, x):
    return y.reshape(*x.shape[:2], self.dim)


def _to_input(self, y, x):
    return y.reshape(x.shape)


def _one_key_head(self, x):
    return self.heads(self.q(x)), self.k(x)[:, None], self.v(x)[:, None]


def _repeated_key_head(self, x):
    q, k, v = _one_key_head(self, x)
    return q, *(z[:, :, None].expand(-1, -1, q.shape[1], -1, -1).flatten(1, 2) for z in (k, v))


def _own_kernel() -> nn.Module:
    class OwnKernel(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(self, x)
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return OwnKernel(lambda s, x: (s.heads(layer(x)) for layer in (s.q, s.k, s.v)))


class Nested(nn.Module):
    """The numbers are in an object that several modules share, and in a tuple."""

    class Numbers:
        num_heads = 0

    def __init__(self) -> None:
        super().__init__()
        self.config = Nested.Numbers()
        self.config.num_heads = 6
        self.shape = (6, 4)
        self.q, self.o = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(len(x), -1, *self.shape).transpose(1, 2)
        y = (q @ q.transpose(-1, -2)).softmax(-1) @ q
        return self.o(y.transpose(1, 2).reshape(len(x), -1, 4 * self.config.num_heads))


class Padded(nn.Module):
    def __init__(self, **given) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 6, 44, batch_first=True, **given)
        self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor | None, mask: Tensor | None = None) -> Tensor:
        return self.inner(x, mask=mask, src_key_padding_mask=padding)


class Causal(nn.Module):
    """Keeps a mask beside its tensors, which stays in float32 whatever the model is converted to."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 6, 44, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, mask=self.mask, is_causal=True)


class StochasticDepth(nn.Module):
    """Draws in training mode which samples go through the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.last = nn.Linear(10, 12), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.down(F.dropout(torch.relu(self.up(F.layer_norm(x, (10,)))), 0.0, self.training))
        if self.training:
            branch = branch * (0.5 + torch.rand(len(x), 1, dtype=x.dtype)).floor()
        return self.last(F.layer_norm(x + branch, (10,)))


class Cached(nn.Module):
    """Keeps something in evaluation mode, as some attention biases are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.up, self.down = nn.Parameter(torch.randn(12)), nn.Linear(10, 12), nn.Linear(12, 5)
        self.cache = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache = {}
        elif "scale" not in self.cache:
            self.cache["scale"] = self.scale * 2
        return self.down(self.up(x) * self.cache.get("scale", self.scale * 2))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 24, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(36, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.first(x)).chunk(2, 1)
        return self.last(torch.cat([a, b, b + torch.relu(self.middle(b))], 1))


class Bag(nn.Module):
    def __init__(self, table: nn.Module, pool) -> None:
        super().__init__()
        self.table, self.pool, self.up, self.down = table, pool, nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.pool(self.table(ids)))))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 14), nn.Linear(10, 18)
        self.both, self.out = nn.Bilinear(14, 18, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.both(torch.relu(self.a(x)), torch.relu(self.b(x)))))


class Graph(nn.Module):
    def __init__(self, adjacency: Tensor | None = None) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(10, 18)), nn.Parameter(torch.randn(18, 5))
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        a = self.adjacency if adjacency is None else adjacency
        return torch.sparse.mm(a, torch.relu(torch.sparse.mm(a, x @ self.w1)) @ self.w2)


class OwnBuffer(nn.Module):
    """A buffer as wide as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(10, 12), nn.Linear(12, 5)
        self.register_buffer("slopes", torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)) * self.slopes)


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: as many channels out as in, and zeros that are filled in part."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.out_channels = 12, 12
        self.weight = nn.Parameter(torch.randn(12, 12, 3, 2) / 12)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft(x)
        out = torch.zeros(len(x), self.out_channels, f.shape[-1], dtype=f.dtype)
        out[:, :, :3] = torch.einsum("bix,iox->box", f[:, :, :3], torch.view_as_complex(self.weight))
        return torch.fft.irfft(out, n=x.shape[-1])


class Operator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 5, 1)
        self.spectral, self.beside = (
            nn.ModuleList(Spectral() for _ in range(2)),
            nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for spectral, beside in zip(self.spectral, self.beside, strict=True):
            x = F.gelu(spectral(x) + beside(x))
        return self.last(x)


class Transformed(nn.Module):
    """A spatial transformer: two flattened widths are written out in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.where, self.conv, self.last = (
            nn.Conv2d(3, 10, 3, 2),
            nn.Linear(90, 6),
            nn.Conv2d(3, 12, 3),
            nn.Linear(432, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(self.look(x).relu().view(-1, 90)).view(-1, 2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, x.size(), align_corners=False), align_corners=False)
        return self.last(self.conv(x).relu().view(-1, 432))


class Spline(nn.Module):
    """A layer as in Kolmogorov-Arnold nets: it checks its inputs, and flattens a weight by its number of outputs."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows
        self.weight, self.scale = nn.Parameter(torch.randn(rows, columns, 3)), nn.Parameter(torch.randn(rows, columns))
        self.register_buffer("grid", torch.rand(columns, 3))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2
        assert x.size(1) == self.in_features
        bases = torch.relu(x[..., None] - self.grid).reshape(len(x), -1)
        return F.linear(bases, (self.weight * self.scale[..., None]).view(self.out_features, -1))


class ByEinsum(Attention):
    """Of two heads a subnet has one, with which einsum does other operations."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (layer(x).reshape(b, n, 2, 12).permute(0, 2, 1, 3) for layer in (self.q, self.k, self.v))
        y = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        return self.o(y.permute(0, 2, 1, 3).reshape(b, n, c))


class FromZeros(nn.Module):
    """The state of a recurrent layer begins with zeros of a width that is written out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = layer, nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x, torch.zeros(1, len(x), 12, dtype=x.dtype))[0])


class Recurrent(FromZeros):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x)[0])


def _normed(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")


X, IMAGE, TEXT = torch.randn(2, 7, 24), torch.randn(2, 3, 8, 8), torch.randn(3, 9, 24)
PADDING = torch.arange(9).expand(3, 9) >= torch.tensor([[9], [6], [7]])
CAUSAL = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
EDGES = (torch.rand(11, 11) < 0.3).double().to_sparse()
TWO_LAYERS = [("heads", 6), ("neurons", 44)]

KINDS = {  # name -> model, inputs, axes
    "a bias in two parts": (Gate, torch.randn(4, 10), [("neurons", 18)]),
    "cross attention": (lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 6, 44, batch_first=True), 1),
                        (TEXT[:, :4], TEXT), [("heads", 6), *TWO_LAYERS]),
    "empty slices": (lambda: _attention(_turned), X, [("heads", 6)]),
    "one key head": (lambda: _attention(_one_key_head, keys=4), X, [("heads", 6)]),
    "one key head, repeated": (lambda: _attention(_repeated_key_head, keys=4), X, [("heads", 6)]),
    "its own kernel": (_own_kernel, X, [("heads", 6)]),
    "a number of heads": (lambda: _attention(_by_number, merge=_to_dim), X, [("heads", 6)]),
    "the input's width": (lambda: _attention(_by_input, merge=_to_input), X, [("heads", 6)]),
    "numbers in a tuple and an object": (Nested, X, [("heads", 6)]),
    "padding": (Padded, (TEXT, PADDING), TWO_LAYERS),
    "padding and a causal mask": (Padded, (TEXT, PADDING, CAUSAL), TWO_LAYERS),
    "a causal mask of its own": (Causal, TEXT, TWO_LAYERS),
    "stochastic depth": (StochasticDepth, torch.randn(4, 10), [("neurons", 12)]),
    "a cache": (Cached, torch.randn(4, 10), [("neurons", 12)]),
    "halves that go different ways": (Halves, IMAGE, [("channels", 12)]),
    "pixel shuffle": (lambda: nn.Sequential(nn.Conv2d(3, 48, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(12, 3, 1)),
                      IMAGE, [("channels", 12)]),
    "pixel unshuffle": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.PixelUnshuffle(2), nn.ReLU(), nn.Conv2d(24, 3, 1)),
                        IMAGE, [("channels", 6)]),
    "channel shuffle": (lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(2), nn.Conv2d(12, 3, 1)), IMAGE,
                        [("channels", 6)]),
    "embedding bag": (lambda: Bag(nn.EmbeddingBag(40, 16), lambda x: x), torch.randint(40, (3, 6)),
                      [("neurons", 16), ("neurons", 20)]),
    "bilinear": (Bilinear, torch.randn(4, 10), [("neurons", 12), ("neurons", 14), ("neurons", 18)]),
    "sparse input": (Graph, (torch.randn(11, 10), EDGES), [("neurons", 18)]),
    "sparse buffer": (lambda: Graph(EDGES), torch.randn(11, 10), [("neurons", 18)]),
    "a Fourier neural operator": (Operator, torch.randn(2, 3, 16), [("channels", 12)] * 3),
    "layers as wide in as out": (lambda: nn.Sequential(Spline(12, 7), Spline(12, 12), Spline(12, 12), Spline(5, 12)),
                                 torch.randn(4, 7), [("neurons", 12)] * 3),
    "a spatial transformer": (Transformed, IMAGE, [("channels", 10), ("channels", 12)]),
    "a first state of zeros": (lambda: FromZeros(nn.GRU(24, 12, batch_first=True)), X, [("neurons", 12)]),
    "a recurrent layer with weight norm": (lambda: Recurrent(_normed(nn.LSTM(24, 12, batch_first=True))), X,
                                           [("neurons", 12)]),
    "buffer as wide as a layer": (OwnBuffer, torch.randn(4, 10), [("neurons", 12)]),
}  # fmt: skip


@pytest.mark.parametrize(("build", "inputs", "axes"), KINDS.values(), ids=KINDS)
def test_it_is_dealt_out_as_a_human_would_and_computes_the_same(build, inputs, axes):
    torch.manual_seed(0)
    model, inputs = doubled(build(), inputs)
    plan = discover(model, inputs)
    assert sorted((axis.kind, axis.num_units) for axis in plan.axes) == sorted(axes), str(plan)
    verify(model, plan, inputs)
    for workers in (2, 5):
        for training in (False, True):
            assert_narrow_equals_masked(model, plan, inputs, dealt_to(plan, workers)[0], training=training)
    if isinstance(model, Cached):
        assert model.cache == {}


def test_one_of_two_heads_goes_through_einsum():
    model, x = doubled(nn.Sequential(nn.LayerNorm(24), ByEinsum(None), nn.LayerNorm(24)), X)
    plan = discover(model, x)
    assert [(axis.kind, axis.num_units) for axis in plan.axes] == [("heads", 2)]
    for training in (False, True):
        assert_narrow_equals_masked(model, plan, x, torch.tensor([1]), training=training)


def test_sparse_gradients_are_compared():
    model, ids = Bag(nn.Embedding(40, 16, sparse=True), lambda x: x.mean(1)), torch.randint(40, (6, 3))
    verify(model, discover(model, ids), ids)


def test_experts_in_one_grouped_product_share_their_hidden_units():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(4, 32, 128) * 0.1), nn.Parameter(torch.randn(4, 64, 32) * 0.1)

        def forward(self, x: Tensor) -> Tensor:
            ends = torch.tensor([4, 9, 12, 16], dtype=torch.int32)  # where the rows of each expert end
            gate, up = F.grouped_mm(F.layer_norm(x, x.shape[1:]), self.up, offs=ends).chunk(2, -1)
            return x + F.grouped_mm(F.silu(gate) * up, self.down, offs=ends)

    model, x = Experts(), torch.randn(16, 32)
    plan = discover(model, x)
    assert [axis.num_units for axis in plan.axes] == [64]
    verify(model, plan, x)


class InTraining(nn.Module):
    """Looks at its width in training mode only."""

    def __init__(self, between) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(10, 24), nn.Linear(24, 5), between

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return self.down(self.between(h) if self.training else h)


@pytest.mark.parametrize(
    "between", [lambda h: h / h.shape[-1] ** 0.5, lambda h: h + h.std(-1, keepdim=True)], ids=["number", "statistic"]
)
def test_a_width_in_a_branch_of_training_mode_is_left_whole(between):
    assert not discover(InTraining(between), torch.randn(8, 10)).axes


def test_verify_runs_training_mode_without_dropout():
    model = nn.Sequential(nn.Linear(10, 24), nn.Dropout(0.5), nn.Linear(24, 5))
    verify(model, discover(model, torch.randn(4, 10)), torch.randn(4, 10))
    wrong = InTraining(lambda h: h / h.shape[-1])
    plan = discover(InTraining(lambda h: h), torch.randn(8, 10))
    with pytest.raises(ValueError, match=r"'(up|down)?.*' with \d+ of 24 units: .* in training mode"):
        verify(wrong, plan, torch.randn(8, 10))


@pytest.mark.parametrize("num_blocks", [10, 30])
def test_a_trial_takes_few_forwards_whatever_fails(num_blocks, monkeypatch):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(num_blocks)
            )
            self.mix, self.last = nn.Linear(8, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = F.layer_norm(x + block(x), (8,))
            x = self.mix(x)
            return self.last(x / x.shape[-1])

    runs = count()
    monkeypatch.setattr(narrow_trial, "extract", lambda *given, **named: (next(runs), extract(*given, **named))[1])
    plan = discover(Net(), torch.randn(4, 8))
    assert [axis.num_units for axis in plan.axes] == [12] * num_blocks
    assert next(runs) < 10


def test_the_plan_says_what_is_adapted_and_a_plan_file_keeps_it(tmp_path):
    model = _attention(_by_number, merge=_to_dim)
    plan = discover(model, X)
    assert plan.numbers == {"1": {"num_heads": "1", "dim": "1"}}
    assert "adapted in a subnet:\n  1: num_heads, dim" in str(plan)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", model).numbers == plan.numbers
    assert not plan.without("1").numbers
    narrow = extract(model, plan, torch.tensor([0, 3]))
    assert (narrow[1].num_heads, narrow[1].head_dim, narrow[1].dim) == (2, 4, 8)
    assert (model[1].num_heads, model[1].dim) == (6, 24)


def test_a_subnet_of_a_subnet_is_adapted_too():
    model, x = doubled(_attention(_by_input, merge=_to_input), X)
    plan = discover(model, x)
    units = torch.tensor([0, 2, 3])
    middle, its_plan = extract(model, plan, units), plan_of_subnet(plan, units)
    twice, once = extract(middle, its_plan, torch.tensor([1, 2])), extract(model, plan, torch.tensor([2, 3]))
    torch.testing.assert_close(twice.eval()(x), once.eval()(x))


class Keeps(nn.Module):
    """A forward leaves something that gradients flow through, in an attribute or in a list."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.up, self.down, self.name, self.maps = nn.Linear(10, 12), nn.Linear(12, 5), name, []

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        setattr(self, self.name, [h] if self.name == "maps" else h)
        return self.down(h.relu())


def test_what_a_forward_has_left_before_is_no_matter_in_lists_and_told_in_one_line_elsewhere():
    x = torch.randn(8, 10)
    for name in ("maps", "last"):
        model = Keeps(name)
        plan = discover(model, x)
        model(x)
        assert extract(model, plan, torch.tensor([1, 4, 5]))(x).shape == (8, 5)
        if name == "maps":
            verify(model, plan, x)
        else:
            with pytest.raises(ValueError, match=r"last: a tensor computed .* or delete it if forward left it"):
                verify(model, plan, x)


def test_extract_leaves_the_buffers_of_a_spectral_norm_alone():
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(
        nn.Linear(10, 18), nn.ReLU(), norm(nn.Linear(18, 22)), nn.ReLU(), nn.Linear(22, 12), nn.ReLU(), nn.Linear(12, 5)
    ).train()
    before = model[2].parametrizations.weight[0]._u.clone()
    narrow = extract(model, discover(model, torch.randn(8, 10)), torch.arange(3))
    for net in (model, narrow):
        assert torch.equal(before, net[2].parametrizations.weight[0]._u)
        assert net[2].parametrizations.weight[0].training
