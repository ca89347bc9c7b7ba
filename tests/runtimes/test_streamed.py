"""The streamed full model: against the model in memory, to the bit, and how much of it is in memory at a time."""

import math
import weakref

import pytest
import torch
from overlapping import Overlapping
from torch import nn
from torch.nn import functional as F
from zoo import CASES

from skerry import Plan, discover
from skerry.merge.calibrate import estimate_batch_norm_, scaled
from skerry.model.inputs import call, tensors_of
from skerry.model.tensors import named_tensors, skeleton
from skerry.partitions import Disjoint, Share
from skerry.runtimes.streamed import Streamed


class Shelf:
    """Gathers from a model in memory, and records what was asked for and the most bytes in use."""

    def __init__(self, model):
        self.tensors = named_tensors(model)
        self.out, self.most, self.asked = weakref.WeakSet(), 0, []

    def __call__(self, names, *, only_first):
        self.asked += [name for name in names if self.tensors[name].dim() > 1]
        found = {name: self.tensors[name].clone() for name in names}
        for tensor in found.values():
            if tensor.dim() > 1:
                self.out.add(tensor)
        self.most = max(self.most, sum(t.nbytes for t in self.out))
        return found


def streamed(model, plan, share=None):
    shelf = Shelf(model)
    share = Share.independent(torch.ones(plan.num_units)) if share is None else share
    return Streamed(skeleton(model), plan, share, shelf), shelf


def assert_same_outputs(model, plan, inputs, share=None):
    full, shelf = streamed(model, plan, share)
    with torch.no_grad():
        expected = list(tensors_of(call(scaled(model, plan, full._share), inputs)))
    for _ in range(2):
        got = list(tensors_of(call(full, inputs)))
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
            assert not a.requires_grad
    return full, shelf


def largest(model):
    return max(tensor.nbytes for tensor in named_tensors(model).values() if tensor.dim() > 1)


@pytest.mark.parametrize("assign", [Disjoint(3), Disjoint(2, core=0.5), Overlapping(3, 2)], ids=["ist", "core", "two"])
def test_outputs_are_those_of_the_scaled_model(case, assign):
    model, plan, inputs = case
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    full, shelf = assert_same_outputs(model, plan, inputs, Share.of(assign, plan.axes, 0))
    assert shelf.most <= largest(model)
    assert full.module is full


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_batch_norm_is_estimated_as_in_the_model(number):
    model, plan, inputs = CASES[number].build()
    share = Share.of(Disjoint(3), plan.axes, 0)
    (full, _), whole = streamed(model, plan, share), scaled(model, plan, share)
    for each in (full.module, whole):
        estimate_batch_norm_(each, lambda m: call(m, inputs))
    for name, tensor in full.tensors():
        assert torch.equal(tensor, named_tensors(whole)[name]), name
    with torch.no_grad():
        for a, b in zip(tensors_of(call(full, inputs)), tensors_of(call(whole, inputs)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_tensors_come_one_after_the_other(number):
    model, plan, inputs = CASES[number].build()
    share = Share.of(Disjoint(3), plan.axes, 0)
    full, shelf = streamed(model, plan, share)
    call(full, inputs)
    expected = named_tensors(scaled(model, plan, share))
    seen = []
    shelf.most = 0
    for name, tensor in full.tensors():
        assert torch.equal(tensor, expected[name]), name
        assert full.names(name) == [n for n, t in model.state_dict(keep_vars=True).items() if t is own(model, name)]
        seen.append(name)
        del tensor
    assert seen == list(expected)
    by_size = sorted(tensor.nbytes for tensor in expected.values() if tensor.dim() > 1)
    assert shelf.most <= sum(by_size[-2:])  # the next is gathered while the caller has the last
    with pytest.raises(ValueError, match=r"result\.export\(folder\)"):
        full.whole()


def own(model, name):
    return dict([*model.named_parameters(), *model.named_buffers()])[name]


def test_other_processes_get_nothing_but_gather_as_often():
    model, plan, _ = CASES[0].build()
    shelf = Shelf(model)
    full = Streamed(
        skeleton(model), plan, Share.independent(torch.ones(plan.num_units)),
        lambda names, *, only_first: {} if shelf(names, only_first=only_first) and only_first else shelf.tensors,
    )  # fmt: skip
    shelf.asked.clear()
    assert all(tensor.dim() < 2 for _, tensor in full.tensors())
    assert shelf.asked == [name for name, tensor in named_tensors(model).items() if tensor.dim() > 1]


class Block(nn.Module):
    """A transformer's layer with PyTorch's own attention."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Language(nn.Module):
    """A language model whose token embedding is tied to its head."""

    def __init__(self, width=8):
        super().__init__()
        self.embed, self.position = nn.Embedding(11, width), nn.Parameter(torch.randn(6, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.register_buffer("mask", torch.ones(6, 6).triu(1).bool(), persistent=False)

    def forward(self, ids):
        x = self.embed(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = x.masked_fill(self.mask[:1, : ids.shape[1]].unsqueeze(-1), 0.0)
        return F.linear(x, self.embed.weight)


@pytest.fixture
def slow_attention():
    """Without PyTorch's fused attention for evaluation, whose operations a function mode does not see."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.usefixtures("slow_attention")
def test_a_transformer_with_tied_weights_and_a_mask():
    model = Language().eval()
    full, shelf = assert_same_outputs(model, Plan.whole(model), torch.randint(0, 11, (4, 6)))
    of_attention = model.blocks[0].attention.in_proj_weight.nbytes + model.blocks[0].attention.out_proj.weight.nbytes
    assert shelf.most <= max(largest(model), of_attention)
    assert full.names("mask") == []
    assert full.names("embed.weight") == ["embed.weight"]


def test_pytorchs_transformer_whose_layers_are_fused_in_memory():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(3, 5, 8)
    full, shelf = streamed(model, Plan.whole(model))
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(full(x), expected)
    assert shelf.most <= sum(t.nbytes for n, t in named_tensors(model).items() if n.startswith("layers.0."))


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(build):
    model, x = build(5, 7, num_layers=2, batch_first=True).eval(), torch.randn(3, 4, 5)
    full, shelf = streamed(model, Plan.whole(model))
    with torch.no_grad():
        torch.testing.assert_close(full(x), model(x), rtol=1e-6, atol=1e-6)  # PyTorch may take another kernel
    assert sorted(shelf.asked) == [name for name in sorted(named_tensors(model)) if "weight" in name]


@pytest.mark.usefixtures("slow_attention")
def test_a_plan_that_discovery_made():
    model, ids = Language().eval(), torch.randint(0, 11, (4, 6))
    plan = discover(model, ids)
    assert plan.axes
    assert_same_outputs(model, plan, ids, Share.of(Disjoint(2), plan.axes, 0))


class Asks(nn.Linear):
    """Reads attributes of its weight before it uses it, as library code does."""

    def forward(self, x):
        about = self.weight
        assert isinstance(about, nn.Parameter)
        assert about.shape == about.size() == torch.Size([self.out_features, self.in_features])
        assert (about.dim(), about.ndim, about.numel()) == (2, 2, self.out_features * self.in_features)
        assert about.dtype == torch.float32
        assert about.is_floating_point()
        assert about.requires_grad
        x = x.to(device=about.device, dtype=about.dtype)
        assert x.device == about.device == torch.device("cpu")
        if not self.used:
            return x
        return F.linear(x, about, self.bias).to(next(self.parameters()).dtype)


@pytest.mark.parametrize("used", [True, False])
def test_reading_attributes_of_a_tensor_does_not_gather_it(used):
    model, x = Asks(5, 5).eval(), torch.randn(3, 5)
    model.used = used
    full, shelf = streamed(model, Plan.whole(model))
    expected = F.linear(x, model.weight, model.bias) if used else x
    assert torch.equal(full(x), expected)
    assert shelf.asked == ["weight"] * used


class Chain(nn.Module):
    """Layers of different sizes; each small one runs twice, and the last operation may take two weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(5)])
        self.up, self.down = nn.Linear(8, 64, bias=False), nn.Linear(64, 8, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(layer(x))
        x = self.down(self.up(x))
        return torch.linalg.multi_dot([x, self.layers[0].weight, self.layers[1].weight]) if self.at_once else x


@pytest.mark.parametrize("at_once", [False, True])
def test_gathered_tensors_stay_while_there_is_room(at_once):
    model = Chain().eval()
    model.at_once = at_once
    full, shelf = streamed(model, Plan.whole(model))
    full(torch.randn(2, 8))
    assert shelf.most <= largest(model) == 64 * 8 * 4
    again = ["layers.0.weight", "layers.1.weight"] if at_once else []
    assert shelf.asked == [*(f"layers.{k}.weight" for k in range(5)), "up.weight", "down.weight", *again]


def test_two_large_weights_of_one_operation_are_both_in_memory():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.randn(6, 6)) for _ in range(3))

        def forward(self, x):
            return torch.cat([self.a, self.b]).sum() + (x @ self.c).sum() + torch.stack([self.a, self.b])[0, 0, 0]

    model = Both().eval()
    _, shelf = assert_same_outputs(model, Plan.whole(model), torch.randn(2, 6))
    assert shelf.most == 2 * 6 * 6 * 4


def test_a_model_of_vectors_and_scalars_only():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.randn(3))

        def forward(self, x):
            return x * self.scale + self.shift

    _, shelf = assert_same_outputs(Scale(), Plan.whole(Scale()), torch.randn(2, 3))
    assert shelf.asked == []
    assert math.isclose(shelf.most, 0)


def test_there_are_no_gradients_and_the_model_does_not_change():
    model, plan, inputs = CASES[0].build()
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    full, _ = assert_same_outputs(model, plan, inputs, Share.of(Disjoint(2), plan.axes, 0))
    assert not full.inner.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())
