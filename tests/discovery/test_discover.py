"""Discovery at its edges: forwards that hide a width, notes and their reasons, blocks, and what it has to refuse."""

import warnings

import pytest
import torch
from equivalence import assert_narrow_equals_masked, assert_write_back_is_exact, bits, dealt_to, doubled, same_bits
from families import NanoAttention
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import Blocks, discover, verify
from skerry.merge import calibrate
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint, Share
from skerry.subnet import extract
from skerry.subnet.adapters import nanogpt_attention


class Around(nn.Module):
    """Two layers with a function of the hidden layer between them; the second hidden layer is ordinary."""

    def __init__(self, between, hidden: int = 12, out: int | None = None) -> None:
        super().__init__()
        self.first, self.between = nn.Linear(5, hidden), between
        self.second, self.last = nn.Linear(out or hidden, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.between(self.first(x)))))


def _hidden_attention(x: Tensor, heads: int) -> Tensor:
    """Attention over the batch, as einops users write it: the number of heads is given, their width follows."""
    h = x.view(x.shape[0], heads, -1).transpose(0, 1)
    return (torch.softmax(h @ h.transpose(1, 2), -1) @ h).transpose(0, 1).reshape(x.shape)


HIDDEN_WIDTHS = {
    "scale by the width": lambda x: x / x.shape[-1] ** 0.5,
    "scale by the whole width": lambda x: x * x.shape[-1],
    "positions": lambda x: x * torch.arange(x.shape[-1]),
    "noise": lambda x: x + torch.randn_like(x),
    "groups of a norm": lambda x: F.group_norm(x, 3),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "softmax": lambda x: torch.softmax(x, -1),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "normalise": lambda x: F.normalize(x, dim=-1),
    "first three": lambda x: torch.cat([x[:, :3] * 2, x[:, 3:]], -1),
    "neighbours": lambda x: x + x.roll(1, -1),
    "reversed": lambda x: x.flip(-1),
    "largest": lambda x: x * (x == x.amax(-1, keepdim=True)),
    "sorted": lambda x: x.sort(-1).values,
    "running sum": lambda x: x.cumsum(-1),
    "a constant": lambda x: x * torch.linspace(1, 2, 12),
    "a diagonal": lambda x: x @ torch.diag_embed(x).mean(0),
    "a Fourier transform": lambda x: torch.fft.rfft(x, dim=-1).abs()[:, :1] + x,
    "an einsum with itself": lambda x: torch.einsum("bi,bj->bij", x, x).sum(1),
}


@pytest.mark.parametrize("between", HIDDEN_WIDTHS.values(), ids=HIDDEN_WIDTHS)
def test_a_width_that_is_not_free_is_left_whole_with_a_reason(between):
    torch.manual_seed(1)
    model, x = Around(between), torch.randn(7, 5)
    plan = discover(model, x)
    assert [axis.name for axis in plan.axes] == ["second"]
    assert any("first" in note.what for note in plan.notes), plan.notes


def test_functional_group_convolution_is_left_whole():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 3, 1)
            self.weight = nn.Parameter(torch.randn(12, 2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.conv1d(self.up(x), self.weight, groups=6))

    plan = discover(Net(), torch.randn(2, 3, 8))
    assert not plan.axes
    assert any("groups=6" in note.why for note in plan.notes), plan.notes


FREE_WIDTHS = {
    "number of heads": lambda x: _hidden_attention(x, 4),  # it and three more are adapted
    "a view": lambda x: x.view(-1, 3, 4).flip(1).flatten(1),
    "a hard view": lambda x: x.view(-1, 12),
    "a hard split": lambda x: torch.cat(x.split(6, -1), -1),
    "halves apart": lambda x: torch.cat([part * 2 for part in x.chunk(2, -1)], -1),
    "every second": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], -1),
    "heads by width": lambda x: x.view(x.shape[0], -1, 2).softmax(-1).flatten(1),
    "zeros of its size": lambda x: x + torch.zeros(x.shape[-1]),
    "a mask of its own": lambda x: x * (x > 0.1),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "over the batch": lambda x: (x - x.mean(0)) / (x.std(0) + 1),
    "in place": lambda x: (x + 1).mul_(2).relu_(),
}


@pytest.mark.parametrize("between", FREE_WIDTHS.values(), ids=FREE_WIDTHS)
@pytest.mark.parametrize("workers", [2, 3])
def test_a_free_width_is_dealt_out(between, workers):
    model, x = doubled(Around(between), torch.randn(7, 5))
    plan = discover(model, x)
    assert [axis.name for axis in plan.axes] == ["first", "second"]
    for units in dealt_to(plan, workers):
        assert_narrow_equals_masked(model, plan, x, units)


def test_a_hard_coded_width_is_named_with_the_patch_to_pass_and_the_patch_works():
    class OfItsHeads(NanoAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (self.c_proj.in_features // 4)  # another number in a narrow net

    model, x = nn.Sequential(nn.Linear(24, 24), OfItsHeads(24, 6), nn.Linear(24, 3)), torch.randn(2, 5, 24)
    plan = discover(model, x)
    assert all(axis.kind != "heads" for axis in plan.axes)
    (note,) = [note for note in plan.notes if note.what.endswith(" 1")]
    assert "patches={'*': skerry.subnet.adapters.nanogpt_attention}" in note.why
    plan = discover(model, x, patches={"1": nanogpt_attention})
    assert [axis.kind for axis in plan.axes if axis.name == "1"] == ["heads"]


def test_a_model_on_meta_has_the_same_plan():
    model, x = nn.Sequential(nn.Linear(24, 24), NanoAttention(24, 6), nn.Linear(24, 3)), torch.randn(2, 5, 24)
    expected = discover(model, x)
    found = discover(model.to("meta"), x)
    assert (found.digest(), found.numbers) == (expected.digest(), expected.numbers)


def test_a_patch_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'secnd'.*'second'"):
        discover(Around(torch.relu), torch.randn(2, 5), patches={"secnd": nanogpt_attention})


def test_the_kernel_of_a_convolution_is_no_reader():
    plan = discover(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(2, 3, 8, 8))
    assert "1 other dim:" in str(plan)  # the first weight's dim 1, which reads the image


def test_notes_give_each_reason():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
            self.mix, self.unused, self.head = nn.Linear(6, 7), nn.Linear(6, 4), nn.Linear(7, 3)
            self.odd_in, self.odd_out = nn.Linear(6, 11), nn.Linear(11, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.embed(x))
            h = h + self.down(torch.relu(self.up(h)))
            h = h + self.odd_out(torch.special.i0(torch.cummax(self.odd_in(h), 0).values))
            return self.head(torch.softmax(self.mix(h), -1))

    plan = discover(Net(), torch.randint(9, (4, 5)))
    for part in ("up ", " 8 ", "down.weight", "104", "426", "24%", "322", "unused.weight"):
        assert part in str(plan), str(plan)
    for tensor, reason in (
        ("embed.weight", "aten::embedding"), ("norm.weight", "aten::native_layer_norm"),
        ("mix.weight", "aten::_softmax"), ("head.weight", "output"), ("odd_in.weight", "aten::cummax"),
    ):  # fmt: skip
        assert any(tensor in note.what and reason in note.why for note in plan.notes), str(plan)


def test_data_dependent_control_flow_holds_for_the_path_taken_and_is_noted():
    class Branches(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2 if float(x.sum()) > 0 else x)

    plan = discover(Branches(torch.relu), torch.randn(4, 5))
    assert len(plan.axes) == 2
    assert len(plan.notes) == len(discover(Around(torch.relu), torch.randn(4, 5)).notes) + 1


def _written(x: Tensor, write) -> Tensor:
    mask = torch.ones_like(x)
    write(mask)
    return x * mask


def _alibi(x: Tensor) -> Tensor:
    heads = x.view(len(x), -1, 2).transpose(0, 1)
    bias = x.new_zeros(len(heads), len(x), len(x))
    for h in range(len(heads)):
        bias[h] = 2.0 ** -(h + 1)
    return (torch.softmax(heads @ heads.transpose(1, 2) + bias, -1) @ heads).transpose(0, 1).flatten(1)


def _viewed_before(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    view = z.view(len(x), -1, 1)
    z.copy_(x)
    return x * view.mean((1, 2))[:, None]


class CustomBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2

    @staticmethod
    def backward(context, gradient):
        return gradient - gradient.mean(-1, keepdim=True)


EMBEDDING = torch.randn(2, 12, dtype=torch.float64)

ODD = {  # each was once dealt out wrongly
    "a prefix filled": lambda x: _written(x, lambda m: m[:, :3].fill_(0)),
    "set one by one": lambda x: _written(x, lambda m: [m[:, i].mul_(2.0**-i) for i in range(m.shape[1])]),
    "a diagonal filled": lambda x: x * torch.ones(x.shape[1], x.shape[1]).fill_diagonal_(0).sum(0),
    "a triangle filled": lambda x: (x[:, :, None] * torch.ones(5, dtype=x.dtype)).tril_().sum(-1),
    "slopes head by head": _alibi,
    "a view taken before": lambda x: _viewed_before(x),
    "a number in a tensor": lambda x: x / torch.sqrt(torch.tensor(x.shape[-1], dtype=x.dtype)),
    "a number of its kind": lambda x: x * x.new_tensor(x.shape[-1]),
    "a number in a list": lambda x: x * torch.tensor([x.shape[-1]]),
    "a number from a shape": lambda x: x * torch.tensor(x.shape)[-1],
    "a number filled in": lambda x: x * torch.full((1,), float(x.shape[-1])),
    "ones counted": lambda x: x / torch.ones_like(x).sum(-1, keepdim=True),
    "length of ones": lambda x: x / torch.ones(x.shape[-1]).norm(),
    "the last position": lambda x: x * torch.arange(x.shape[-1]).max(),
    "ones times ones": lambda x: x * (torch.ones(1, x.shape[-1]) @ torch.ones(x.shape[-1], 1)),
    "a number by name": lambda x: torch.add(x, x, alpha=1 / x.shape[-1]),
    "a number by name in place": lambda x: (x * 1).addcmul_(x, x, value=1 / x.shape[-1]),
    "another path if wide": lambda x: x * 0.5 if x.shape[-1] > 8 else x,
    "as often as wide": lambda x: [x := torch.tanh(x) for _ in range(x.shape[-1] // 4)][-1],
    "a row looked up by units": lambda x: x + F.embedding((x > 0).long(), EMBEDDING).mean((1, 2))[:, None],
    "a row selected by units": lambda x: x + EMBEDDING.index_select(0, x.argmax(1) % 2),
    "a decision over units": lambda x: -x if float(x.detach().mean()) > 0 else x,
    "a shift by units": lambda x: x.roll(int(x.detach().sum(-1).argmax()), 0),
}  # fmt: skip


@pytest.mark.parametrize("between", ODD.values(), ids=ODD)
def test_odd_forwards_are_left_whole(between):
    torch.manual_seed(2)
    model, x = doubled(Around(between), torch.randn(7, 5))
    plan = discover(model, x)
    assert "first" not in [axis.name for axis in plan.axes]
    for units in dealt_to(plan, 2):
        assert_narrow_equals_masked(model, plan, x, units)


FILLED = {
    "a half": (6, lambda x: _written(x, lambda m: m[:, x.shape[1] // 2 :].mul_(2))),
    "every second": (6, lambda x: _written(x, lambda m: m[:, ::2].add_(1))),
    "row by row": (12, lambda x: _written(x, lambda m: [m[i].copy_(x[i].sin()) for i in range(len(x))])),
}


@pytest.mark.parametrize(("num_units", "between"), FILLED.values(), ids=FILLED)
def test_a_tensor_made_first_and_filled_in_parts_has_the_units_of_what_fills_it(num_units, between):
    model, x = doubled(Around(between), torch.randn(7, 5))
    plan = discover(model, x)
    assert {axis.name: axis.num_units for axis in plan.axes}["first"] == num_units
    for units in dealt_to(plan, 2):
        assert_narrow_equals_masked(model, plan, x, units)


class WeightPlus(nn.Module):
    """A weight to which something is added is not zero where the weight is."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(5, 12), nn.Parameter(torch.randn(3, 12))
        self.shift = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.first(x)), self.weight + self.shift)


@pytest.mark.parametrize("shape", [(), (3, 1), (1, 1)])
def test_a_shifted_weight_cannot_leave_units_out(shape):
    model, x = doubled(WeightPlus(*shape), torch.randn(7, 5))
    assert not discover(model, x).axes


def test_a_shift_with_the_same_labels_can():
    model, x = doubled(WeightPlus(3, 12), torch.randn(7, 5))
    plan = discover(model, x)
    assert [axis.num_units for axis in plan.axes] == [12]
    for units in dealt_to(plan, 3):
        assert_narrow_equals_masked(model, plan, x, units)


def test_a_net_that_keeps_a_reference_to_itself_is_left_whole():
    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
            self.run = lambda x: self.net(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    plan = discover(Closure(), torch.randn(4, 5))
    assert not plan.axes
    assert any("net.0.bias" in note.why for note in plan.notes), plan.notes


def test_what_a_forward_does_in_training_counts():
    class Trains(Around):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = h - h.mean(-1, keepdim=True) if self.training else h
            return self.last(torch.relu(self.second(F.dropout(h, 0.3, self.training))))

    model = Trains(torch.relu)
    model.register_module("norm", nn.BatchNorm1d(3))
    assert [axis.name for axis in discover(model, torch.randn(4, 5)).axes] == ["second"]


def test_statistics_are_as_before_though_training_is_traced():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = bits(model)
    for batch in (4, 1):  # batch norm does not train on one sample
        assert len(discover(model, torch.randn(batch, 5)).axes) == 1
        assert same_bits(before, bits(model))


def test_a_gradient_of_ones_own_is_found_by_verify():
    model, x = Around(CustomBackward.apply), torch.randn(7, 5)
    with pytest.raises(ValueError, match=r"axis 'first'.*\bfirst\.weight\b.*\b1e-04\b"):
        verify(model, discover(model, x), x)


def test_two_parameters_in_one_memory_are_refused():
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 5))
    model[1].weight.data = model[0].weight.data.t()
    with pytest.raises(ValueError, match=r"\b1\.weight\b.*\b0\.weight\b"):
        discover(model, torch.randn(4, 5))


def test_a_patch_that_fails_is_blamed():
    def patch(narrow: nn.Module, full: nn.Module) -> None:
        narrow.nothing.there = 3

    with pytest.raises(ValueError, match=r"'first'.*\bLinear\b.*\bAttributeError\b.*'nothing'"):
        discover(Around(torch.relu), torch.randn(4, 5), patches={"first": patch})


def test_a_forward_that_counts_leaves_no_trace():
    class Counts(Around):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.calls = 0
            self.register_buffer("replaced", torch.zeros(()))
            self.register_buffer("written", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.replaced = self.replaced + 1
            self.written += 1
            return super().forward(x)

    model = Counts()
    assert len(discover(model, torch.randn(4, 5)).axes) == 2
    assert (model.calls, float(model.replaced), int(model.written)) == (0, 0.0, 0)


REFUSED = {
    "inputs of another width": (lambda: Around(torch.relu), torch.randn(4, 6), r"\bfirst\b.*\b4x6 and 5x12\b"),
    "no inputs": (lambda: Around(torch.relu), (), r"Around\.forward\(\).*'x'"),
    "unknown keyword": (lambda: Around(torch.relu), {"y": torch.randn(4, 5)}, r"Around\.forward\(\).*'y'"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), torch.randn(4, 5), r"\b0\.weight\b"),
    "meta": (lambda: Around(lambda x: x * float(x.sum())).to("meta"), torch.randn(4, 5), r"\.item\(\).*\bmeta\b"),
    "sparse": (
        lambda: _with(Around(torch.relu), nn.Parameter(torch.eye(10).to_sparse())),
        torch.randn(4, 5),
        r"\badjacency\b.*_coo\b",
    ),
    "no output": (lambda: _Silent(), torch.randn(4, 5), r"\bNoneType\b"),
    "writes to a parameter": (lambda: Writes(), torch.randn(4, 5), r"\bfirst\.bias\b.*\bforward\b"),
    "computed tensor": (lambda: Computed(), torch.randn(4, 5), r"\bweight\b.*\bforward\b"),
}


def _with(model: nn.Module, parameter: nn.Parameter) -> nn.Module:
    model.adjacency = parameter
    return model


class _Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> None:
        self.first(x)


class Writes(Around):
    def __init__(self) -> None:
        super().__init__(torch.relu)

    def forward(self, x: Tensor) -> Tensor:
        self.first.bias.mul_(0.9)
        return super().forward(x)


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(5, 4)
        self.weight = self.base.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@pytest.mark.parametrize(("build", "inputs", "names"), REFUSED.values(), ids=REFUSED)
def test_unsupported_models_are_refused_in_one_line_and_not_changed(build, inputs, names):
    model = build()
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items() if _is_plain(t)}
    with pytest.raises(ValueError, match=names) as error:
        discover(model, inputs)
    assert "\n" not in str(error.value)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())
    assert all(m.training for m in model.modules())


def _is_plain(tensor: Tensor) -> bool:
    lazy = isinstance(tensor, nn.parameter.UninitializedParameter)
    return not lazy and not tensor.is_meta and tensor.layout == torch.strided


def test_a_quantized_module_is_refused():
    class QuantizedLinear(nn.Module):
        __module__ = "torch.ao.nn.quantized.modules.linear"

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"\b0\b.*\bQuantizedLinear\b"):
        discover(nn.Sequential(QuantizedLinear(), nn.Linear(5, 2)), torch.randn(3, 5))


def test_a_model_compiled_to_torchscript_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is going away
        model = torch.jit.trace(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), torch.randn(3, 5))
    with pytest.raises(ValueError, match=r"\bTopLevelTracedModule\b"):
        discover(model, torch.randn(3, 5))


# --- blocks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.down(torch.relu(self.up(self.norm(x))))


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.body = nn.ModuleList(Residual(8, 10 + k) for k in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body:
            x = block(x, scale=0.5)
        return self.head(x)


def test_blocks_and_widths_together():
    model, x = doubled(ResidualNet(), torch.randn(9, 4))
    plan = discover(model, x, blocks=Blocks("body.*"))
    assert [(a.name, a.kind, a.num_units) for a in plan.axes][-1] == ("blocks body.*", "blocks", 5)
    assert len(plan.axes) == 7
    for workers in (2, 3, 5):
        for units in dealt_to(plan, workers):
            for training in (False, True):
                assert_narrow_equals_masked(model, plan, x, units, training=training)
            assert_write_back_is_exact(model, plan, units)
            held = {name for name, unit in plan.blocks.items() if unit in units}
            tensors = {n.rpartition(".")[0] for n in named_tensors(extract(model, plan, units)) if n.startswith("body")}
            assert {name.rpartition(".")[0] for name in tensors} == held


def test_patterns_of_blocks():
    model, x = ResidualNet(), torch.randn(9, 4)
    for blocks, expected in (
        (Blocks("body.[1-3]"), ["body.1", "body.2", "body.3"]),
        (Blocks("body.?"), [f"body.{k}" for k in range(5)]),
        (Blocks("body.0", "body.4", axis="ends"), ["body.0", "body.4"]),
    ):
        assert list(blocks.plan(model, x).blocks) == expected


def test_a_subnet_without_a_block_has_the_identity_in_its_place():
    model, x = ResidualNet().eval(), torch.randn(9, 4)
    plan = Blocks("body.*").plan(model, x)
    none = extract(model, plan, torch.empty(0, dtype=torch.int64)).eval()
    torch.testing.assert_close(none(x), model.head(model.stem(x)))
    assert sum(p.numel() for p in none.body.parameters()) == 0


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1))
        self.pair = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "inputs", "blocks", "names"),
    [
        (Strided(), torch.randn(2, 3, 8, 8), Blocks("layer.*"), r"layer\.0\b.*\(2, 3, 8, 8\).*\(2, 6, 4, 4\)"),
        (Strided(), torch.randn(2, 3, 8, 8), Blocks("pair"), r"\bpair\b"),
        (Strided(), torch.randn(2, 3, 8, 8), Blocks("layr.*"), r"'layr\.\*'.*'layer"),
        (ResidualNet(), torch.randn(2, 4), Blocks("body.*", branch="conv2"), r"body\.0\b.*'conv2'"),
    ],
)  # fmt: skip
def test_blocks_that_do_not_qualify_are_refused(model, inputs, blocks, names):
    with pytest.raises(ValueError, match=names):
        blocks.plan(model, inputs)


def test_blocks_that_share_a_tensor_or_contain_one_another_are_refused():
    model = ResidualNet()
    model.body[2].norm = model.body[0].norm
    with pytest.raises(ValueError, match=r"body\.2\.norm\b.*\bbody\.2\b.*\bbody\.0\b"):
        Blocks("body.*").plan(model, torch.randn(2, 4))
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    both = Blocks("0").plan(nested, torch.randn(2, 4)) + Blocks("0.*").plan(nested, torch.randn(2, 4))
    assert both.blocks == {"0": 0, "0.0": 1}


@pytest.mark.parametrize("branch", ["down", ("down", "up")])
def test_calibration_scales_each_branch_by_the_share_of_subnets_that_had_the_block(branch):
    model, x = ResidualNet(), torch.randn(2, 4)
    plan = Blocks("body.*", branch=branch).plan(model, x)
    share = Share.of(Disjoint(5), plan.axes, 0)
    scaled = calibrate(model, plan, share, lambda m: m(x))
    for k in range(5):
        torch.testing.assert_close(scaled.body[k].down.weight, model.body[k].down.weight / 5)
        torch.testing.assert_close(scaled.body[k].down.bias, model.body[k].down.bias / 5)
        torch.testing.assert_close(scaled.body[k].up.weight, model.body[k].up.weight / (5 if "up" in branch else 1))


def test_channels_last_images_are_dealt_out_like_others():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    x = torch.randn(2, 3, 8, 8)
    for inputs in (x, x.to(memory_format=torch.channels_last)):
        assert [axis.num_units for axis in discover(model, inputs).axes] == [6]
