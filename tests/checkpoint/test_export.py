"""Exported models: read back by other readers than ours, tensor by tensor; and what happens to an older export."""

import importlib
import json
import os
import shutil
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file
from together import together
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn import functional as F
from zoo import CASES, METHODS, MODELS, mlp

from skerry import Checkpoints, Plan, discover, train
from skerry.checkpoint.export import export
from skerry.files import atomic
from skerry.merge.calibrate import scaled
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint, Share
from skerry.runtimes import Serial
from skerry.runtimes.streamed import Streamed
from skerry.runtimes.whole_model import Whole
from skerry.weights import FromFiles, materialize, skeleton

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # said by dcp.load in one process
INDEX = "model.safetensors.index.json"
export_module = importlib.import_module("skerry.checkpoint.export")


def read(folder):
    """All tensors, and the files' names, as the index tells or as the one file has them."""
    files = sorted(path.name for path in folder.iterdir())
    if INDEX not in files:
        assert files == ["model.safetensors"]
        return load_file(folder / "model.safetensors"), files
    index = json.loads((folder / INDEX).read_text())
    named = sorted({*index["weight_map"].values()})
    assert files == [*named, INDEX]
    assert named == [f"model-{k:05d}-of-{len(named):05d}.safetensors" for k in range(1, len(named) + 1)]
    tensors = {}
    for file in named:
        with safe_open(folder / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}  # transformers insist on it
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                assert index["weight_map"][name] == file
                tensors[name] = opened.get_tensor(name)
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in tensors.values())}
    return tensors, named


def assert_exported(model, folder):
    """It is the model's state_dict, whatever reads it."""
    tensors, _ = read(folder)
    expected = model.state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    skeleton(model).load_state_dict(tensors, strict=True, assign=True)
    source = FromFiles(folder, skeleton(model))
    assert {n for n, tensor in named_tensors(model).items() if not torch.equal(source.read(n), tensor)} == set()
    tied = expected.keys() - named_tensors(model).keys()
    assert set(source.unused) == tied


def test_a_weight_norm_is_read_back_with_its_scaled_norm(tmp_path):
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 12)), nn.ReLU(), norm(nn.Linear(12, 5)))
    plan = discover(model, torch.randn(7, 6))
    whole = scaled(model, plan, Share.of(Disjoint(3), plan.axes, 0))
    export(Whole(whole), tmp_path)
    assert_exported(whole, tmp_path)
    assert not torch.equal(whole[2].weight, model[2].weight)
    gather = lambda names, only_first: {name: named_tensors(model)[name].clone() for name in names}  # noqa: E731
    streamed = Streamed(skeleton(model), plan, Share.of(Disjoint(3), plan.axes, 0), gather)
    for name, tensor in streamed.tensors():
        assert torch.equal(tensor, named_tensors(whole)[name]), name


@pytest.mark.parametrize("shard_bytes", [1, 600, 2**20])
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_what_is_read_back_is_the_model(tmp_path, number, shard_bytes):
    model, plan, inputs = CASES[number].build()
    export(Whole(model), tmp_path / "whole", shard_bytes=shard_bytes)
    assert_exported(model, tmp_path / "whole")
    share = Share.of(Disjoint(3), plan.axes, 0)
    tensors = named_tensors(model)
    full = Streamed(skeleton(model), plan, share, lambda names, *, only_first: {n: tensors[n].clone() for n in names})
    export(full, tmp_path / "streamed", shard_bytes=shard_bytes)
    calibrated = scaled(model, plan, share)
    assert_exported(calibrated, tmp_path / "streamed")
    again = materialize(skeleton(model), FromFiles(tmp_path / "streamed", skeleton(model))).eval()
    assert torch.equal(again(inputs), calibrated(inputs))


def test_files_are_as_large_as_they_may_be(tmp_path):
    model = nn.ParameterList([nn.Parameter(torch.randn(n)) for n in (10, 10, 10, 100, 10, 20, 5)])
    export(Whole(model), tmp_path, shard_bytes=30 * 4)
    _, files = read(tmp_path)
    sizes = [[t.numel() for t in load_file(tmp_path / file).values()] for file in files]
    assert [sum(size) for size in sizes] == [30, 100, 30, 5]


def test_one_file_if_it_is_small(tmp_path):
    model, _, _ = mlp()
    export(Whole(model), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    export(Whole(model), tmp_path, shard_bytes=sum(t.nbytes for t in model.state_dict().values()))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


class Odd(nn.Module):
    """Tied and nested names, dtypes, no dims, strides, and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.inner = nn.Module()
        self.inner.head = self.head  # a third name
        self.turned = nn.Parameter(torch.randn(5, 3).T)
        self.low = nn.Parameter(torch.randn(3).bfloat16())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("count", torch.tensor(2**60 + 7))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.register_buffer("angles", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("fleeting", torch.ones(3), persistent=False)


@pytest.mark.parametrize("shard_bytes", [1, 100, 2**20])
def test_odd_tensors(tmp_path, shard_bytes):
    model = Odd()
    export(Whole(model), tmp_path, shard_bytes=shard_bytes)
    tensors, _ = read(tmp_path)
    assert tensors.keys() == model.state_dict().keys()
    assert {"embed.weight", "head.weight", "inner.head.weight"} <= tensors.keys()
    assert "fleeting" not in tensors
    for name, tensor in model.state_dict().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


def test_an_older_export_is_replaced_and_other_files_stay(tmp_path):
    others = {"config.json": b"{}", "model-card.md": b"#", "modelling.py": b"x", "checkpoint.json": b"{}"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    for shard_bytes in (1, 600, 2**20, 300, 1, 2**20):
        model, _, _ = mlp()
        export(Whole(model), tmp_path, shard_bytes=shard_bytes)
        for name, content in others.items():
            path = tmp_path / name
            assert path.read_bytes() == content
            path.unlink()
        assert_exported(model, tmp_path)
        for name, content in others.items():
            (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("name", ["model_best.safetensors", "model-before.safetensors", "model.safetensors.bak"])
def test_the_users_own_files_stay(tmp_path, name):
    (tmp_path / name).write_bytes(b"dear to somebody")
    export(Whole(mlp()[0]), tmp_path)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("before", [2**20, 600])
def test_an_export_that_breaks_off_leaves_the_older_one(tmp_path, monkeypatch, before):
    old, new = mlp()[0], mlp()[0]
    export(Whole(old), tmp_path, shard_bytes=before)
    written = []
    real = export_module.save_tensors

    def save(tensors, path, **more):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError("no space left")
        written.append(path)
        real(tensors, path, **more)

    with monkeypatch.context() as patched:
        patched.setattr(export_module, "save_tensors", save)
        with pytest.raises(OSError, match=r"model-00003-of-\d+\.safetensors.*no space left"):
            export(Whole(new), tmp_path, shard_bytes=400)
    assert_exported(old, tmp_path)  # and nothing else is there
    for path in written:
        path.write_bytes(b"half")  # as a kill leaves it
    export(Whole(new), tmp_path)
    assert_exported(new, tmp_path)


class Counted(Whole):
    """A model whose tensors are made when they are asked for, and which knows how many there are at a time."""

    def __init__(self, num, rows):
        shapes = {f"t{k}": nn.Parameter(torch.empty(rows, 4, device="meta")) for k in range(num)}
        super().__init__(nn.ParameterDict(shapes))
        object.__setattr__(self, "most", 0)

    def tensors(self):
        out = weakref.WeakSet()
        for name, size in super().tensors():
            tensor = torch.full(size.shape, float(name[1:]))
            out.add(tensor)
            object.__setattr__(self, "most", max(self.most, len(out)))
            yield name, tensor
            del tensor

    def names(self, name):
        return [name, f"{name}.again"] if name == "t3" else [name]


@pytest.mark.parametrize("how", [{"shard_bytes": 4 * 16 * 4 * 4}, {"shard_bytes": None}, {"format": "dcp"}])
def test_the_writer_needs_the_memory_of_a_tensor(tmp_path, how):
    full = Counted(40, 16)
    export(full, tmp_path, **how)
    assert full.most == 1
    if "format" in how:
        tensors = {name: torch.empty(16, 4) for name in [*(f"t{k}" for k in range(40)), "t3.again"]}
        dcp.load(tensors, checkpoint_id=tmp_path)
    else:
        tensors, files = read(tmp_path)
        assert len(files) == (11 if how["shard_bytes"] else 1)
    assert len(tensors) == 41
    assert all(bool((tensor == float(name[1:].split(".")[0])).all()) for name, tensor in tensors.items())


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_plain_torch_loads_a_dcp_checkpoint_and_one_file(tmp_path, number):
    model, plan, inputs = CASES[number].build()
    share = Share.of(Disjoint(3), plan.axes, 0)
    tensors = named_tensors(model)
    full = Streamed(skeleton(model), plan, share, lambda names, *, only_first: {n: tensors[n].clone() for n in names})
    expected = scaled(model, plan, share).eval()(inputs)
    export(full, tmp_path, format="dcp")
    (tmp_path / "model.safetensors").write_bytes(b"of something older")
    export(full, tmp_path, shard_bytes=None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    again, state = CASES[number].build()[0], model.state_dict()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.eval()(inputs), expected)
    export(full, tmp_path, shard_bytes=64)
    for _ in range(2):  # the second replaces the first
        export(full, tmp_path, format="dcp")
    assert not list(tmp_path.glob("*.safetensors*"))
    state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(state, checkpoint_id=tmp_path)
    again = CASES[number].build()[0]
    again.load_state_dict(state)
    assert torch.equal(again.eval()(inputs), expected)
    dcp_to_torch_save(tmp_path, tmp_path / "whole.pt")  # a tool of torch
    assert torch.load(tmp_path / "whole.pt", weights_only=True).keys() == state.keys()


def test_odd_tensors_in_a_dcp_checkpoint(tmp_path):
    model = Odd()
    export(Whole(model), tmp_path, format="dcp")
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    dcp.load(state, checkpoint_id=tmp_path)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_dcp_export_that_breaks_off_leaves_the_older_one(tmp_path):
    model = mlp()[0]
    export(Whole(model), tmp_path, format="dcp")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Broken(Counted):
        def tensors(self):
            yield next(super().tensors())
            raise OSError("no space left")

    with pytest.raises(atomic.WriteFailed, match="no space left"):
        export(Broken(3, 4), tmp_path, format="dcp")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown format 'safetensor'; did you mean 'safetensors'"):
        export(Whole(mlp()[0]), tmp_path, format="safetensor")


def test_every_process_takes_part_and_the_first_one_writes(tmp_path):
    algorithm, optimizer = METHODS["ist"].algorithm, METHODS["ist"].optimizer

    def go(runtime):
        torch.manual_seed(1)
        model, plan, _ = mlp()
        data = MODELS["mlp"][1](3)
        return train(
            model, F.cross_entropy, data, plan=plan, algorithm=algorithm, optimizer=optimizer, num_rounds=2,
            runtime=runtime,
        )  # fmt: skip

    def work(member):
        result = go(member)
        for _ in range(2):
            result.export(tmp_path / f"{member.rank}", shard_bytes=300)
        result.export(tmp_path / f"{member.rank}" / "dcp", format="dcp")

    together(3, work)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    serial = go(Serial())
    serial.export(tmp_path / "serial", shard_bytes=300)
    assert_exported(serial.model, tmp_path / "serial")
    state = {name: torch.zeros_like(tensor) for name, tensor in serial.model.state_dict().items()}
    dcp.load(state, checkpoint_id=tmp_path / "0" / "dcp")
    for name, tensor in serial.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor)
    shutil.rmtree(tmp_path / "0" / "dcp")
    ours, meant = read(tmp_path / "0"), read(tmp_path / "serial")
    assert ours[1] == meant[1]
    for name, tensor in meant[0].items():
        torch.testing.assert_close(ours[0][name], tensor)


def test_a_plan_that_deals_nothing_out_changes_nothing(tmp_path):
    model = Odd()
    tensors = named_tensors(model)
    full = Streamed(
        skeleton(model), Plan.whole(model), torch.ones(0),
        lambda names, *, only_first: {n: tensors[n].clone() for n in names},
    )  # fmt: skip
    export(full, tmp_path, shard_bytes=64)
    tensors, _ = read(tmp_path)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, umask):
    model, plan, _ = mlp()
    before = os.umask(umask)
    try:
        train(
            model, F.cross_entropy, MODELS["mlp"][1](3), plan=plan, algorithm=METHODS["ist"].algorithm,
            optimizer=METHODS["ist"].optimizer, num_rounds=1, checkpoints=Checkpoints(folder=tmp_path),
        ).export(tmp_path, shard_bytes=800)  # fmt: skip
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert len(files) > 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
