"""Sources: a part is ``take`` of the whole, to the bit; fresh tensors are spread as PyTorch spreads them."""

import importlib.util
import json
import math
import pickle
import re
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import nn
from zoo import TiedAutoencoder, Transposed

from skerry.model.tensors import named_tensors, skeleton
from skerry.randomness import generator
from skerry.subnet.index import Index
from skerry.subnet.slicing import take
from skerry.weights import slabs
from skerry.weights.from_files import FromFiles
from skerry.weights.initializer import FromInitializer, default_init
from skerry.weights.rows import Constant, Normal, Uniform
from skerry.weights.source import FromModel, materialize


def _net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.Flatten(), nn.Linear(40, 7), nn.LSTM(7, 5)]
        return nn.Sequential(*layers, nn.Embedding(30, 4, dtype=torch.bfloat16))


def _sharded(folder, tensors, shards=2):
    """Write a folder as Hugging Face does: shards, and an index of which shard has what."""
    folder.mkdir(exist_ok=True)
    files = [f"model-{k + 1:05}-of-{shards:05}.safetensors" for k in range(shards)]
    of = {name: files[k % shards] for k, name in enumerate(tensors)}
    for file in files:
        save_file({n: t.contiguous() for n, t in tensors.items() if of[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
    return folder


@pytest.fixture(scope="module")
def all_sources(tmp_path_factory):
    net = _net()
    folder = _sharded(tmp_path_factory.mktemp("files") / "net", net.state_dict())
    return [FromModel(net), FromInitializer(skeleton(net), 3), FromFiles(folder, skeleton(net))]


@st.composite
def _cuts(draw, shape):
    def index(size):
        kind = draw(st.sampled_from(["all", "picked", "runs"]))
        if kind == "all":
            return None
        if kind == "picked":
            held = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            return Index(torch.tensor([k for k in range(size) if held[k]], dtype=torch.int64))
        ends = sorted(draw(st.lists(st.integers(0, size), min_size=2, max_size=4)))
        return Index(torch.tensor([k for a, b in zip(ends[::2], ends[1::2], strict=False) for k in range(a, b)]).long())

    return tuple(index(size) for size in shape) if draw(st.integers(0, 9)) else ()


SHAPES = {name: tensor.shape for name, tensor in named_tensors(_net()).items()}


@pytest.mark.parametrize("slab_bytes", [1, 200, 2**23])  # a row, a few rows, everything at a time
@settings(max_examples=60)
@given(data=st.data())
def test_a_part_is_the_same_part_of_the_whole_to_the_bit(all_sources, slab_bytes, data):
    name = data.draw(st.sampled_from(sorted(SHAPES)))
    cut = data.draw(_cuts(SHAPES[name]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "_SLAB_BYTES", slab_bytes)
        for source in all_sources:
            part, whole = source.read(name, cut), source.read(name)
            expected = take(whole, cut)
            assert (part.dtype, part.shape) == (whole.dtype, expected.shape)
            assert torch.equal(part, expected)


def test_a_read_tensor_is_new(all_sources):
    for source in all_sources:
        for name in SHAPES:
            first = source.read(name)
            again = first.clone()
            source.read(name).zero_()
            assert (first.device.type, first.is_contiguous(), first.requires_grad) == ("cpu", True, False)
            assert torch.equal(source.read(name), again)


# ---- drawn from a seed


def test_a_row_is_a_pure_function_of_seed_name_and_row():
    net = nn.ModuleDict({"a": nn.Linear(20, 8), "b": nn.Linear(20, 8), "c": nn.Linear(20, 12)})
    one, two, other = FromInitializer(net, 5), FromInitializer(skeleton(net), 5), FromInitializer(net, 6)
    torch.manual_seed(9)  # nothing to do with it
    a = one.read("a.weight")
    assert torch.equal(a, two.read("a.weight"))
    assert not (a == one.read("b.weight")).any()
    assert not (a == other.read("a.weight")).any()
    assert len({row.sum().item() for row in a}) == 8
    for row in range(8):
        expected = torch.empty(20).uniform_(-(20**-0.5), 20**-0.5, generator=generator(5, "init", "a.weight", row))
        assert torch.equal(a[row], expected)
    assert torch.equal(pickle.loads(pickle.dumps(one)).read("a.weight"), a)


def test_neither_the_default_device_nor_dtype_nor_other_reads_matter():
    source = FromInitializer(_net(), 0)
    cut = (Index(torch.tensor([1, 4])), None)
    expected = source.read("3.weight", cut)
    with torch.device("meta"):
        assert torch.equal(source.read("3.weight", cut), expected)
        assert source.read("3.bias").device.type == "cpu"
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(source.read("3.weight", cut), expected)
    finally:
        torch.set_default_dtype(torch.float32)


KNOWN = {
    "linear": lambda: nn.Linear(300, 200),
    "bilinear": lambda: nn.Bilinear(60, 30, 40),
    "conv1d": lambda: nn.Conv1d(60, 200, 5),
    "conv2d": lambda: nn.Conv2d(60, 80, 3, groups=4),
    "conv3d": lambda: nn.Conv3d(20, 60, 3),
    "transposed1d": lambda: nn.ConvTranspose1d(100, 60, 5),
    "transposed2d": lambda: nn.ConvTranspose2d(60, 80, 3, groups=4),
    "transposed3d": lambda: nn.ConvTranspose3d(20, 60, 3),
    "embedding": lambda: nn.Embedding(300, 64, padding_idx=7),
    "embedding bag": lambda: nn.EmbeddingBag(300, 64, padding_idx=299),
    "batch norm": lambda: nn.BatchNorm2d(50),
    "sync batch norm": lambda: nn.SyncBatchNorm(50),
    "instance norm": lambda: nn.InstanceNorm1d(50, affine=True, track_running_stats=True),
    "layer norm": lambda: nn.LayerNorm((50, 2)),
    "group norm": lambda: nn.GroupNorm(5, 50),
    "rms norm": lambda: nn.RMSNorm(50),
    "attention": lambda: nn.MultiheadAttention(96, 4, add_bias_kv=True),
    "attention, other widths": lambda: nn.MultiheadAttention(96, 4, kdim=50, vdim=70),
    "encoder layer": lambda: nn.TransformerEncoderLayer(96, 4, 200),
    "rnn": lambda: nn.RNN(60, 100, 2),
    "lstm": lambda: nn.LSTM(60, 100, 2, bidirectional=True, proj_size=30),
    "gru": lambda: nn.GRU(60, 100),
    "gru cell": lambda: nn.GRUCell(60, 100),
    "prelu": lambda: nn.PReLU(5, init=0.1),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_fresh_tensors_are_spread_as_reset_parameters_spreads_them(kind):
    real = KNOWN[kind]()
    source = FromInitializer(skeleton(real), 0)
    for name, torchs in named_tensors(real).items():
        ours = source.read(name)
        assert (ours.shape, ours.dtype) == (torchs.shape, torchs.dtype)
        if (torchs == torchs.flatten()[0]).all():
            assert torch.equal(ours, torchs), name
            continue
        enough = torchs.numel() > 5000
        assert ours.std().item() == pytest.approx(torchs.std().item(), rel=0.05 if enough else 0.4), name
        assert ours.mean().abs() < 5 * torchs.std() / math.sqrt(torchs.numel()), name
        if enough and torchs.abs().max() < 2 * torchs.std():  # uniform
            assert ours.abs().max().item() == pytest.approx(torchs.abs().max().item(), rel=0.01), name
        if "embedding" in kind:
            assert torch.equal((ours == 0).all(1), (torchs == 0).all(1))


def test_the_rules_themselves():
    def rules(module):
        return {name: default_init(_owner(module, name), name, t.shape) for name, t in named_tensors(module).items()}

    def _owner(module, name):
        return module.get_submodule(name.rpartition(".")[0])

    assert rules(nn.Linear(16, 3)) == {"weight": Uniform(0.25), "bias": Uniform(0.25)}
    assert rules(nn.ConvTranspose1d(5, 4, 4)) == {"weight": Uniform(0.25), "bias": Uniform(0.25)}
    assert rules(nn.Bilinear(4, 9, 2)) == {"weight": Uniform(0.5), "bias": Uniform(0.5)}
    assert rules(nn.Embedding(3, 2, padding_idx=1)) == {"weight": Normal(1.0, zero_row=1)}
    assert set(rules(nn.GRU(3, 4)).values()) == {Uniform(0.5)}
    assert rules(nn.PReLU()) == {"weight": Constant(0.25)}
    ones, zeros = Constant(1), Constant(0)
    assert list(rules(nn.BatchNorm1d(3)).values()) == [ones, zeros, zeros, ones, zeros]
    attention = rules(nn.MultiheadAttention(6, 2, add_bias_kv=True))
    assert attention["in_proj_weight"] == Uniform(pytest.approx(math.sqrt(6 / 24)))
    assert attention["bias_k"] == Normal(pytest.approx(math.sqrt(1 / 6)))
    assert attention["in_proj_bias"] == attention["out_proj.bias"] == zeros
    assert attention["out_proj.weight"] == Uniform(pytest.approx(6**-0.5))


def test_conv1d_of_transformers_is_known_by_its_name():
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    assert default_init(conv1d(), "c.weight", torch.Size([2, 3])) == Normal(0.02)
    assert default_init(conv1d(), "c.bias", torch.Size([3])) == Constant(0)


def test_pyg_layers_start_as_their_reset_parameters_does():
    pyg = pytest.importorskip("torch_geometric.nn", exc_type=ImportError)
    kinds = {
        "linear": pyg.Linear(300, 70),
        "gcn": pyg.GCNConv(300, 70),
        "sage": pyg.SAGEConv(300, 70),
        "gat": pyg.GATConv(300, 70, heads=3),
        "gatv2": pyg.GATv2Conv(300, 70, heads=3),
        "transformer": pyg.TransformerConv(300, 70, heads=3),
    }
    for kind, real in kinds.items():
        source = FromInitializer(skeleton(real), 0)
        for name, torchs in real.named_parameters():
            ours = source.read(name)
            assert ours.abs().max().item() == pytest.approx(torchs.abs().max().item(), rel=0.1), (kind, name)
            assert ours.std().item() == pytest.approx(torchs.std().item(), rel=0.2), (kind, name)


def test_small_floats_are_drawn_as_float32_then_rounded():
    small, full = (FromInitializer(nn.Linear(50, 40, dtype=dtype), 0) for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(small.read("weight"), full.read("weight").bfloat16())
    assert FromInitializer(nn.Linear(5, 4, dtype=torch.float64), 0).read("weight").dtype == torch.float64


class _Scaled(nn.Linear):
    def __init__(self, size):
        super().__init__(size, size)
        self.scale = nn.Parameter(torch.ones(size))
        self.register_buffer("mask", torch.ones(size, size).tril())


def test_an_init_of_ones_own_goes_before_the_default():
    net = nn.Sequential(_Scaled(6), nn.Linear(6, 2))

    def init(module, name, shape):
        if name.endswith("scale"):
            return Constant(0.5)
        if name.endswith("mask"):
            return torch.ones(shape).triu()
        if isinstance(module, nn.Linear) and shape == (2, 6):
            return lambda block, rng, row: block.normal_(row, 0.1, generator=rng)
        return None

    source = FromInitializer(skeleton(net), 0, init)
    assert torch.equal(source.read("0.scale"), torch.full((6,), 0.5))
    assert torch.equal(source.read("0.mask", (None, Index(torch.tensor([2])))), torch.ones(6, 6).triu()[:, 2:3])
    assert torch.allclose(source.read("1.weight").mean(1), torch.tensor([0.0, 1.0]), atol=0.3)
    assert torch.equal(source.read("0.weight"), FromInitializer(net[:1], 0, init).read("0.weight"))


def test_what_no_rule_is_known_for_is_refused_but_real_buffers_are_kept():
    net = nn.Sequential(_Scaled(6))
    with pytest.raises(ValueError, match=r"^0\.scale\b[^\n]*\b_Scaled\b[^\n]*\binit=[^\n]*$"):
        FromInitializer(net, 0)

    def init(module, name, shape):
        return Constant(1) if name.endswith("scale") else None

    assert torch.equal(FromInitializer(net, 0, init).read("0.mask"), torch.ones(6, 6).tril())
    with pytest.raises(ValueError, match=r"^0\.mask\b.*\b_Scaled\b.*\binit="):
        FromInitializer(skeleton(net), 0, init)
    with pytest.raises(ValueError, match=r"0\.weight\b.*\binit\b.*\(3,\).*\(6, 6\)"):
        FromInitializer(net, 0, lambda module, name, shape: torch.ones(3) if len(shape) == 2 else Constant(1))
    with pytest.raises(ValueError, match=r"0\.weight\b.*\binit\b.*\b0\.02\b.*\(6, 6\)"):
        FromInitializer(net, 0, lambda module, name, shape: 0.02)


def test_a_subclass_that_starts_in_its_own_way_is_not_taken_for_its_parent():
    class Zeros(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.weight)

    with pytest.raises(ValueError, match=r"weight\b.*\bZeros\b.*\binit="):
        FromInitializer(Zeros(2, 2), 0)


# ---- a model's own


def test_from_model_reads_what_is_there_now():
    net = nn.Linear(3, 2)
    source = FromModel(net)
    nn.init.constant_(net.weight, 7)
    assert torch.equal(source.read("weight"), torch.full((2, 3), 7.0))
    with pytest.raises(ValueError, match=r"weight\b.*\bmeta\b.*\bFromInitializer\b"):
        FromModel(skeleton(net))


# ---- read from files


@pytest.mark.parametrize("how", ["file", "folder", "sharded", "index"])
def test_every_layout_of_files(tmp_path, how):
    net = _net()
    if how in ("file", "folder"):
        save_model(net, tmp_path / "model.safetensors")
    else:
        _sharded(tmp_path, net.state_dict(), shards=3)
    tail = {"file": "model.safetensors", "index": "model.safetensors.index.json"}.get(how, "")
    source = FromFiles(str(tmp_path / tail), skeleton(net))
    assert source.unused == ()
    for name, tensor in named_tensors(net).items():
        assert torch.equal(source.read(name), tensor)


def test_dtypes_become_the_models(tmp_path):
    net = nn.BatchNorm1d(4)
    net.weight.data = torch.tensor([1.0, 1 / 3, 3.0, -0.0])
    save_file({**net.state_dict(), "extra": torch.ones(2)}, tmp_path / "f.safetensors")
    source = FromFiles(tmp_path / "f.safetensors", nn.BatchNorm1d(4).bfloat16())
    assert torch.equal(source.read("weight", (Index(torch.tensor([1, 2])),)), torch.tensor([1 / 3, 3.0]).bfloat16())
    assert source.read("num_batches_tracked").dtype == torch.int64
    assert source.unused == ("extra",)


def test_tied_tensors_are_found_under_any_of_their_names(tmp_path):
    net = TiedAutoencoder(5)
    tensors = named_tensors(net)
    tensors["right.weight"] = tensors.pop("left.weight")
    save_file(tensors, tmp_path / "f.safetensors")
    assert torch.equal(FromFiles(tmp_path / "f.safetensors", skeleton(net)).read("left.weight"), net.left.weight)


def test_the_base_models_prefix_may_be_there_or_not(tmp_path):
    class Base(nn.Linear):
        base_model_prefix = "base"

    class Headed(nn.Module):
        base_model_prefix = "base"

        def __init__(self):
            super().__init__()
            self.base = Base(3, 3)

    net = Headed()
    save_model(net, tmp_path / "headed.safetensors")
    save_model(net.base, tmp_path / "base.safetensors")
    assert torch.equal(FromFiles(tmp_path / "headed.safetensors", Base(3, 3)).read("weight"), net.base.weight)
    assert torch.equal(FromFiles(tmp_path / "base.safetensors", Headed()).read("base.weight"), net.base.weight)


def test_buffers_that_are_not_stored_keep_the_models_values(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    net.register_buffer("outer", torch.arange(4), persistent=False)
    net[0].register_buffer("inner", torch.arange(3), persistent=False)
    save_model(net, tmp_path / "f.safetensors")
    source = FromFiles(tmp_path / "f.safetensors", net)
    assert source.read("outer", (Index(torch.tensor([1, 3])),)).tolist() == [1, 3]
    assert source.read("0.inner").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"'outer'.*\b1\b.*\bmeta\b"):
        FromFiles(tmp_path / "f.safetensors", skeleton(net))


def _refused(path, model, *names):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, names))) as caught:
        FromFiles(path, model)
    assert "\n" not in str(caught.value)


def test_files_of_another_model_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    net = nn.Sequential(nn.Linear(3, 4))
    save_model(net, path)
    _refused(path, nn.Sequential(nn.Linear(3, 5)), str(path), "0.weight", "(4, 3)", "(5, 3)")
    _refused(path, nn.Linear(3, 4), str(path), "'weight'", "1", "'0.weight'", "state_dict")
    _refused(path, nn.ModuleDict({"a": net}), "'a.0.weight'", "1", "'0.weight'", "state_dict")
    _refused(path, nn.ModuleDict({"far": nn.PReLU()}), "'far.weight'", "'0.weight'")
    save_file({"0.weight": torch.ones(4, 3, dtype=torch.int8), "0.bias": torch.ones(4)}, path)
    _refused(path, net, str(path), "0.weight", "I8", "0.weight")
    save_file({"0.weight": torch.ones(4, 3).to(torch.float8_e4m3fn), "0.bias": torch.ones(4)}, path)
    _refused(path, net, "0.weight", "F8_E4M3", "0.weight")
    norm = nn.BatchNorm1d(2)
    save_file({**norm.state_dict(), "num_batches_tracked": torch.tensor(1.0)}, path)
    _refused(path, norm, "num_batches_tracked", "F32", "torch.int64")


def test_pickles_damaged_and_missing_files_are_refused(tmp_path):
    net = nn.Linear(3, 4)
    expected = (".safetensors", "model.safetensors", "model.safetensors.index.json")
    _refused(tmp_path / "none", net, str(tmp_path / "none"), *expected)
    _refused(tmp_path, net, str(tmp_path), *expected)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        _refused(path, net, str(tmp_path / "pytorch_model.bin"), "pickle", "safetensors.torch.save_file")
    file = tmp_path / "f.safetensors"
    torch.save(net.state_dict(), file)
    _refused(file, net, str(file), "safetensors", "header")
    save_model(net, file)
    content = file.read_bytes()
    for length in (0, 5, 40, len(content) - 1):
        file.write_bytes(content[:length])
        _refused(file, net, str(file), "safetensors", "header")
    index = tmp_path / "model.safetensors.index.json"
    for text in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        _refused(tmp_path, net, str(index), "safetensors")
    index.write_text('{"weight_map": {"weight": "gone.safetensors"}}')
    _refused(tmp_path, net, str(tmp_path / "gone.safetensors"), index.name)
    index.write_text('{"weight_map": {"weight": "pytorch_model.bin"}}')
    _refused(tmp_path, net, str(tmp_path / "pytorch_model.bin"), "pickle", "safetensors.torch.save_file")


def test_a_file_that_is_gone_when_it_is_read_is_named(tmp_path):
    save_model(nn.Linear(3, 4), tmp_path / "f.safetensors")
    source = FromFiles(tmp_path / "f.safetensors", nn.Linear(3, 4))
    (tmp_path / "f.safetensors").unlink()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "f.safetensors"))):
        source.read("weight")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
def test_memory_stays_near_the_size_of_the_part(tmp_path):
    net = nn.Linear(2048, 8192, bias=False)  # 64 MiB
    save_model(net, tmp_path / "f.safetensors")
    script = """
import sys, torch
from torch import nn
from skerry.subnet import Index
from skerry.weights import FromFiles, FromInitializer
torch.set_num_threads(1)
def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024
model = nn.Linear(2048, 8192, bias=False, device="meta")
files, fresh = FromFiles(sys.argv[1], model), FromInitializer(model, 0)
few_rows, few_columns = (Index(torch.arange(5, 8192, 800)), None), (None, Index(torch.arange(3, 2048, 100)))
for source in (files, fresh):
    source.read("weight", (Index.run(0, 3), Index.run(0, 3)))
    for cut in (few_rows, few_columns):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew
        before = resident("VmRSS")
        source.read("weight", cut)
        print(resident("VmHWM") - before)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, tmp_path / "f.safetensors"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown = [float(line) for line in done.stdout.split()]
    assert len(grown) == 4
    assert max(grown) < 28, f"MiB, of 64: {grown}"
    for few_rows in grown[::2]:
        assert few_rows < 12, grown


def test_a_gpt2_folder_of_transformers(tmp_path):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra hf")
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    config = GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = skeleton(model)
    assert all(t.is_meta for t in [*again.parameters(), *again.buffers()])
    source = FromFiles(tmp_path, again)
    assert source.unused == ()
    materialize(again, source)
    assert again.lm_head.weight is again.transformer.wte.weight
    tokens = torch.arange(10)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    base = FromFiles(tmp_path, GPT2Model(config))  # without the prefix "transformer."
    assert torch.equal(base.read("h.1.mlp.c_fc.weight"), model.transformer.h[1].mlp.c_fc.weight)

    fresh = FromInitializer(skeleton(model), 0)
    assert fresh.read("transformer.h.0.mlp.c_fc.weight").std().item() == pytest.approx(0.02, rel=0.1)


# ---- models without and with values


@pytest.mark.parametrize("build", [_net, Transposed, lambda: nn.Sequential(nn.MultiheadAttention(4, 2), nn.GRU(4, 3))])
def test_skeleton_then_materialize_is_the_model(build):
    model = build()
    bare = skeleton(model)
    assert all(t.is_meta for t in [*bare.parameters(), *bare.buffers()])
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert {n: (t.shape, t.dtype) for n, t in named_tensors(bare).items()} == {
        n: (t.shape, t.dtype) for n, t in named_tensors(model).items()
    }
    assert materialize(bare, FromModel(model)) is bare
    for name, tensor in named_tensors(bare).items():
        assert torch.equal(tensor, named_tensors(model)[name])
    assert list(bare.state_dict()) == list(model.state_dict())


def test_the_lists_that_rnns_keep_follow():
    model = nn.LSTM(3, 4, 2)
    again = materialize(skeleton(model), FromModel(model))
    x = torch.randn(5, 3)
    assert torch.equal(again(x)[0], model(x)[0])


def test_ties_frozen_parameters_marks_and_plain_attributes_survive():
    model = TiedAutoencoder(5)
    model.first.bias.requires_grad_(False)
    model.left.weight.mark = "mine"
    model.note = ["kept"]
    bare = skeleton(model)
    for net in (bare, materialize(skeleton(bare), FromInitializer(bare, 0, lambda *_: Constant(2)))):
        assert net.right.weight is net.left.weight
        assert net.left.weight.mark == "mine"
        assert [p.requires_grad for p in net.first.parameters()] == [True, False]
        assert isinstance(net.left.weight, nn.Parameter)
        assert net.note == ["kept"]
        assert net.note is not model.note


def test_skeleton_of_a_model_that_cannot_be_copied():
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"\bmodel\b.*'_thread\.lock'"):
        skeleton(model)
